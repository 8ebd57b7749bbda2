"""The shipped model in diffusers' own pipeline, as each peer's worker calls it: requests in, PNG files out.

Equal requests share a call, each with a generator of its own. It knows neither HTTP nor queues. torch is
imported when the model is loaded, so that a process which only passes requests on stays small.
"""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.equal_batches import places_of

FOLDER = Path(__file__).resolve().parents[2] / "models" / "tiny"
MAX_BATCH = "PEER_MAX_BATCH"
WAIT_SECONDS = "PEER_WAIT_SECONDS"
PORT = "PEER_PORT"
"""The variables by which a benchmark hands its settings to a peer's server."""
Request = Mapping[str, Any]
"""`prompt`, `width`, `height`, `num_inference_steps`, `guidance_scale` and `seed`."""


class Drawing:
    """The model on one thread."""

    def __init__(self) -> None:
        import torch
        from diffusers import DDIMScheduler, StableDiffusionPipeline
        from diffusers.utils.logging import disable_progress_bar

        disable_progress_bar()
        torch.set_num_threads(1)
        self._new_generator = torch.Generator
        self._pipeline: Any = StableDiffusionPipeline.from_pretrained(
            FOLDER, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        self._pipeline.scheduler = DDIMScheduler.from_config(self._pipeline.scheduler.config)
        self._pipeline.set_progress_bar_config(disable=True)

    def draw(self, requests: Sequence[Request]) -> list[bytes]:
        """Draw all of these; the PNG files in the order of the requests."""
        files = dict(self.draw_in_turn(requests))
        return [files[place] for place in range(len(requests))]

    def draw_in_turn(self, requests: Sequence[Request]) -> Iterator[tuple[int, bytes]]:
        """Yield the place of each request and its PNG file, as soon as its call has ended."""
        for places in places_of(requests):
            images = self._call([requests[place] for place in places])
            for place, image in zip(places, images, strict=True):
                yield place, _png(image)

    def _call(self, requests: Sequence[Request]) -> list[Any]:
        first = requests[0]
        images: list[Any] = self._pipeline(
            prompt=[one["prompt"] for one in requests],
            width=first["width"],
            height=first["height"],
            num_inference_steps=first["num_inference_steps"],
            guidance_scale=first["guidance_scale"],
            generator=[self._new_generator().manual_seed(one["seed"]) for one in requests],
        ).images
        return images


def max_batch() -> int:
    """The most requests of a batch that this server was asked to form."""
    return int(os.environ[MAX_BATCH])


def wait_seconds() -> float:
    """How long this server was asked to wait for a batch to fill."""
    return float(os.environ[WAIT_SECONDS])


def port() -> int:
    """The port of 127.0.0.1 on which this server was asked to answer."""
    return int(os.environ[PORT])


def _png(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
