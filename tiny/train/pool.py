"""The denoiser's training data: a growing pool of latents and token ids of rendered scenes.

A pool has images of one side. It starts small, so that training starts at once, and grows by a few new scenes
with every draw, so that the model does not memorize pairs of things.
"""

import random
from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from tiny.scenes import Scene, draw_scene, render
from tiny.train.text_encoder import cell_labels
from tiny.train.tokenizer import tokenize

CHUNK = 32


class Pool:
    """Encoded scenes: latents `(N, 4, side/8, side/8)` at unit variance, token ids and labels.

    `paint` renders a scene: `scenes.render`, or the renderer of a style.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        side: int,
        *,
        first: int,
        most: int,
        seed: int,
        paint: Callable[[Scene, int, random.Random], Image.Image] = render,
    ) -> None:
        self.vae, self.tokenizer, self.side, self.paint = vae, tokenizer, side, paint
        self.rng = random.Random(seed * 1000 + side)
        self.latents = torch.empty(most, 4, side // 8, side // 8)
        self.token_ids = torch.empty(most, tokenizer.model_max_length, dtype=torch.long)
        self.labels = torch.empty(most, 3, 64, dtype=torch.long)
        self.filled, self.owed = 0, 0.0
        while self.filled < first:
            self._grow()

    def draw(self, count: int, *, fresh: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return `count` random rows. The pool grows by `fresh` scenes a draw until it is full."""
        self.owed += fresh
        if self.owed >= CHUNK and self.filled < len(self.latents):
            self.owed -= CHUNK
            self._grow()
        chosen = torch.randint(0, self.filled, (count,))
        return self.latents[chosen], self.token_ids[chosen], self.labels[chosen]

    def _grow(self) -> None:
        scenes = [draw_scene(self.rng, pairs=0.5) for _ in range(min(CHUNK, len(self.latents) - self.filled))]
        images = np.stack([np.asarray(self.paint(scene, self.side, self.rng)) for scene in scenes])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            latents = self.vae.encode(pixels).latent_dist.mode().float()
        rows = slice(self.filled, self.filled + len(scenes))
        self.latents[rows] = latents * self.vae.config.scaling_factor
        self.token_ids[rows] = tokenize(self.tokenizer, [scene.caption() for scene in scenes])
        self.labels[rows] = torch.stack([cell_labels(scene) for scene in scenes])
        self.filled += len(scenes)
