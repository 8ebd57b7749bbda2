"""A model of arithmetic instead of weights, that fails on command, and a clock that is set by hand."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from engine.buckets import UNTESTED, BucketsByShape
from engine.families.family import Conditions, Encoding
from engine.sampling import FlowSigmas

MARKS = {"explode": 1.0, "not a number": 2.0, "huge": 3.0, "lose the device": 4.0}


@dataclass
class FakeFamily:
    """Elementwise, so every row is exact; what it does to a prompt is written in `MARKS`."""

    max_rows: int = 1000  # more rows than that are out of memory
    step_sizes: list[int] = field(default_factory=list)  # rows of every forward pass tried
    on_predict: Callable[[], None] = lambda: None

    device = torch.device("cpu")
    dtype = torch.float32
    scheduler: Any = field(default_factory=DDIMScheduler)
    flow_sigmas: FlowSigmas | None = None
    latent_channels = 4
    pixels_per_latent = 8
    latents_per_patch = 1
    max_side: int | None = None
    buckets: BucketsByShape = field(default_factory=lambda: UNTESTED)

    def needs_guidance_row(self, guidance_scale: float) -> bool:
        return guidance_scale > 1

    def encode(self, text: str, *, is_negative: bool = False) -> Encoding:  # noqa: ARG002
        if text == "cannot be encoded":
            raise RuntimeError("tokenizer")
        return Encoding(torch.full((1, 1, 1), MARKS.get(text, 0.0)))

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        self.on_predict()
        self.step_sizes.append(len(latents))
        assert len(latents) == len(timesteps) == len(conditions.prompt_embeds)
        assert len(latents) == len(conditions.pooled_embeds) == len(conditions.guidance_scales)
        marks = conditions.prompt_embeds.flatten()
        if (marks == MARKS["lose the device"]).any():
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")
        if len(latents) > self.max_rows or (marks == MARKS["huge"]).any():
            raise torch.OutOfMemoryError("CUDA out of memory")
        if (marks == MARKS["explode"]).any():
            raise ValueError("bad row")
        output = torch.sin(latents + timesteps.view(-1, 1, 1, 1) / 100)
        output[marks == MARKS["not a number"]] = float("nan")
        return output

    def decode(self, latents: Tensor) -> Tensor:
        assert len(latents) == 1
        return torch.tanh(latents[:, :3]).repeat_interleave(8, 2).repeat_interleave(8, 3)


@dataclass
class FakeCachingFamily(FakeFamily):
    """Its deep part is the sine of the latents; a shallow row adds its timestep to an earlier one's."""

    can_cache_steps: bool = True
    deep_sizes: list[int] = field(default_factory=list)  # rows of every deep part that was run

    def predict_partly(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        *,
        num_deep_rows: int,
        features: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        output = self.predict(latents, timesteps, conditions)
        if features is None:
            features = latents.new_empty(0, *latents.shape[1:])
        num_new = len(latents) - len(features)
        assert num_new <= num_deep_rows <= len(latents)
        self.deep_sizes.append(num_deep_rows)
        output[num_new:] = torch.tanh(features + timesteps[num_new:].view(-1, 1, 1, 1) / 100)
        return output, latents[:num_new]


@dataclass
class SizeDependent(FakeFamily):
    """Rounds differently from `from_rows` rows on, as a kernel chosen by shape does."""

    from_rows: int = 8
    difference: float = 1e-6

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        output = super().predict(latents, timesteps, conditions)
        return output + self.difference if len(latents) >= self.from_rows else output


@dataclass
class NeighbourDependent(FakeFamily):
    """A row's numbers depend on the rows beside it."""

    difference: float = 1e-3

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        return super().predict(latents, timesteps, conditions) + latents.mean() * self.difference


class SetClock:
    """A clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
