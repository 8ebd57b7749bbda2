"""The small interface between the runner and a kind of model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoding:
    """One text as the model reads it, and what was lost on the way."""

    prompt_embeds: Tensor  # (1, tokens, width)
    warning: str | None = None


class Family(Protocol):
    """A loaded model: three stateless functions of tensors, and the shapes that they want."""

    device: torch.device
    dtype: torch.dtype
    scheduler_config: Mapping[str, Any]
    latent_channels: int
    pixels_per_latent: int  # along one side

    def needs_guidance_row(self, guidance_scale: float) -> bool:
        """Whether a generation at this scale needs an unconditional row besides the conditional one."""

    def encode(self, text: str) -> Encoding:
        """One text alone, always: embeddings then cannot depend on what else is being encoded."""

    def predict(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The model output `(R, C, h, w)` for R rows, each at its own timestep `(R,)`."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels `(1, 3, H, W)` in [-1, 1] of one row of latents `(1, C, h, w)`, always one."""
