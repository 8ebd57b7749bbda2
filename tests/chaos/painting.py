"""Images that say whose they are: SHA-256 of account, job and seed, carried through the real engine.

The text encoder turns a digest into numbers, the denoiser predicts the noise that leaves exactly these
numbers as the image, and the decoder paints each as a square of one colour. So every image goes through the
engine's batches row by row, and one that lands in another's row shows another's digest.
"""

import hashlib
import io
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from engine.engine import Engine
from engine.generation import Handle
from engine.request import GenerationRequest, SchedulerSpec
from tests.unit.engine.fakes import PIXELS_PER_LATENT, FakeDenoiser, FakeModel, FakeTextEncoder, FakeVAE

NUM_BYTES = hashlib.sha256().digest_size
SIDE = 64
CHANNELS = 3


def digest_of(account: str, job_id: str, seed: int) -> bytes:
    """What is painted into the image of a job with this seed."""
    return hashlib.sha256(f"{account}|{job_id}|{seed}".encode()).digest()


def read(file: bytes) -> bytes:
    """The digest that a lossless image file shows. Raises `ValueError` if it is not painted at all."""
    pixels = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    squares = pixels[::PIXELS_PER_LATENT, ::PIXELS_PER_LATENT]
    if (squares.repeat(PIXELS_PER_LATENT, 0).repeat(PIXELS_PER_LATENT, 1) != pixels).any():
        raise ValueError("a square of the image has more than one colour")
    numbers = squares.transpose(2, 0, 1).reshape(-1)
    expected = np.resize(numbers[:NUM_BYTES], numbers.shape)
    if (numbers != expected).any():
        raise ValueError("the image repeats no digest")
    return numbers[:NUM_BYTES].tobytes()


CULPRITS = ("out of memory", "not a number", "hang", "poison", "lose the device")
"""Prompts of jobs that fail, each in its own way, and may take their process with them."""


class DigestEncoder(FakeTextEncoder):
    """Encodes a digest and a prompt, `(1, 1, 33)`: the prompt's place among `CULPRITS`, from 1, and 32 bytes.

    The bytes are numbers in -1..1.
    """

    def forward(self, text: str) -> Tensor:
        digits, _, prompt = text.partition(" ")
        digest = np.frombuffer(bytes.fromhex(digits), np.uint8)
        assert len(digest) == NUM_BYTES
        numbers = torch.from_numpy(digest / 127.5 - 1).to(torch.float32)
        mark = torch.full((1, 1, 1), 1.0 + CULPRITS.index(prompt) if prompt in CULPRITS else 0.0)
        return torch.cat([mark, numbers.view(1, 1, -1)], dim=2)


class DigestDenoiser(FakeDenoiser):
    """Predicts for each row the noise that leaves its digest: DDIM, arXiv 2010.02502, equation 12, solved."""

    def __init__(self, scheduler: DDIMScheduler, before_step: Callable[[], object]) -> None:
        super().__init__()
        self._alphas = scheduler.alphas_cumprod
        self._before_step = before_step

    def predict(self, sample: Tensor, timestep: Tensor, marks: Tensor) -> Tensor:
        self._before_step()
        self.step_sizes.append(len(sample))
        culprits = [CULPRITS[int(mark) - 1] if mark else "" for mark in marks[:, 0, 0].tolist()]
        for culprit in culprits:
            _misbehave(culprit)
        timestep = timestep.expand(len(sample)) if timestep.ndim == 0 else timestep
        alphas = self._alphas[timestep.long()].view(-1, 1, 1, 1)
        numbers = marks[:, 0, 1:]
        size = sample[0].numel()
        image = numbers.repeat(1, -(-size // NUM_BYTES))[:, :size].view(sample.shape)
        noise: Tensor = (sample - alphas.sqrt() * image) / (1 - alphas).sqrt()
        noise[torch.tensor([one == "not a number" for one in culprits])] = torch.nan
        return noise


def _misbehave(culprit: str) -> None:
    if culprit == "out of memory":
        raise torch.OutOfMemoryError("CUDA out of memory")
    if culprit == "hang":
        threading.Event().wait()
    if culprit == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    if culprit == "lose the device":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


class DigestVAE(FakeVAE):
    """Paints each number of the first three channels as a square."""

    def decode(self, latents: Tensor, return_dict: bool = True) -> tuple[Tensor]:  # noqa: ARG002
        pixels = latents[:, :CHANNELS]
        return (pixels.repeat_interleave(PIXELS_PER_LATENT, 2).repeat_interleave(PIXELS_PER_LATENT, 3),)


def painting_model(before_step: Callable[[], object] = lambda: None) -> FakeModel:
    """A model that paints the digest which is its prompt; `before_step` is called before each step batch."""
    scheduler = DDIMScheduler(clip_sample=False)
    return FakeModel(
        scheduler=scheduler,
        denoiser=DigestDenoiser(scheduler, before_step),
        text_encoder=DigestEncoder(),
        vae=DigestVAE(),
    )


class PaintingEngine(Engine):
    """The real engine, which draws for each request the digest of its labels instead of its prompt."""

    def submit(self, request: GenerationRequest, **more: Any) -> Handle:
        """As `Engine.submit`."""
        digest = digest_of(request.account, request.job_id, request.seed).hex()
        text = f"{digest} {request.prompt}"
        painted = request.changed(prompt=text, negative_prompt=text, scheduler=SchedulerSpec())
        return super().submit(painted, **more)
