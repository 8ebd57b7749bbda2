"""The bare model: its forward pass, encoder and decoder in a plain loop, each at its best batch size.

It is the reference for the engine: no requests, no policy, no sampler, no image file. It times a forward
pass, an encoding and a decoding; the cost of any work follows from these.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils.logging import disable_progress_bar

BATCHES = (1, 2, 4, 8)
PROMPT = "a large red heart on a white background"


@dataclass(frozen=True)
class BarePrices:
    """CPU seconds on one thread: of a row of a forward pass, of a text, and of an image's decoding."""

    row_seconds: float
    encode_seconds: float
    decode_seconds: float

    def seconds(self, *, num_row_steps: float, num_texts: float, num_images: float) -> float:
        """Return the cost of that work on the bare model, in seconds."""
        return (
            num_row_steps * self.row_seconds
            + num_texts * self.encode_seconds
            + num_images * self.decode_seconds
        )


class BareModel:
    """diffusers' own modules of the shipped model, called in loops."""

    def __init__(self, folder: Path, side: int, row_counts: tuple[int, ...]) -> None:
        disable_progress_bar()
        self._pipeline: Any = StableDiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        self._side = side // self._pipeline.vae_scale_factor
        self.best_rows = self._best(self._forward, row_counts)
        self.best_texts = self._best(self._encode, BATCHES)
        self.best_images = self._best(self._decode, BATCHES)

    def prices(self, *, repeats: int = 3) -> BarePrices:
        """Measure again, so that measurements can alternate with the engine's."""
        return BarePrices(
            self._each(self._forward, self.best_rows, repeats),
            self._each(self._encode, self.best_texts, repeats),
            self._each(self._decode, self.best_images, repeats),
        )

    def step_table(self, max_rows: int, *, repeats: int = 9) -> dict[int, float]:
        """Median seconds of one forward pass at every number of rows; the numbers take turns."""
        rows = range(1, max_rows + 1)
        rounds = [
            [self._each(self._forward, num_rows, 1) * num_rows for num_rows in rows] for _ in range(repeats)
        ]
        return {
            num_rows: statistics.median(taken)
            for num_rows, taken in zip(rows, zip(*rounds, strict=True), strict=True)
        }

    def _best(self, work: Callable[[int], None], sizes: tuple[int, ...]) -> int:
        rounds = [[self._each(work, size, 1) for size in sizes] for _ in range(7)]  # sizes take turns
        medians = map(statistics.median, zip(*rounds[1:], strict=True))  # the first one warms up
        return min(zip(medians, sizes, strict=True))[1]

    @staticmethod
    @torch.inference_mode()
    def _each(work: Callable[[int], None], size: int, repeats: int) -> float:
        """Median seconds of one item among `size`."""
        taken = []
        for _ in range(repeats):
            begun = time.process_time()
            work(size)
            taken.append(time.process_time() - begun)
        return statistics.median(taken) / size

    def _forward(self, num_rows: int) -> None:
        unet = self._pipeline.unet
        shape = (num_rows, unet.config.in_channels, self._side, self._side)
        width = unet.config.cross_attention_dim
        embeds = torch.ones(num_rows, self._pipeline.tokenizer.model_max_length, width)
        unet(torch.ones(shape), torch.linspace(1, 999, num_rows), embeds, return_dict=False)

    def _encode(self, num_texts: int) -> None:
        tokenizer = self._pipeline.tokenizer
        tokens = tokenizer(
            [PROMPT] * num_texts,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        self._pipeline.text_encoder(tokens.input_ids)

    def _decode(self, num_images: int) -> None:
        channels = self._pipeline.vae.config.latent_channels
        latents = torch.ones(num_images, channels, self._side, self._side)
        self._pipeline.vae.decode(latents, return_dict=False)
