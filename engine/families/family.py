"""The small interface between the runner and a kind of model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from engine.buckets import BucketsByShape
from engine.sampling import FlowSigmas


@dataclass(frozen=True)
class Encoding:
    """One text as the model reads it, and what was lost on the way.

    Every text of a family has as many tokens, padding included, so that any two can share a step batch.
    """

    prompt_embeds: Tensor  # (1, tokens, width)
    pooled_embeds: Tensor = field(default_factory=lambda: torch.zeros(1, 0))  # (1, width), or none: width 0
    warnings: tuple[str, ...] = ()  # sentences about the text, without its name, by `families.truncation`
    attention_mask: Tensor = field(default_factory=lambda: torch.zeros(1, 0))  # (1, tokens), or none: width 0


@dataclass(frozen=True)
class Conditions:
    """What the R rows of a forward pass are told besides their latents and timesteps."""

    prompt_embeds: Tensor  # (R, tokens, width)
    pooled_embeds: Tensor  # (R, width); width 0 where the family has none
    attention_masks: Tensor  # (R, tokens): 0 at padding, else 1; width 0 where the family reads padding too
    guidance_scales: Tensor  # (R,) fp32, for models that take the scale as an input

    @classmethod
    def of(cls, encodings: Sequence[Encoding], guidance_scales: Tensor) -> Self:
        """The conditions of as many rows as there are encodings and scales `(R,)`."""
        return cls(
            torch.cat([one.prompt_embeds for one in encodings]),
            torch.cat([one.pooled_embeds for one in encodings]),
            torch.cat([one.attention_mask for one in encodings]),
            guidance_scales,
        )


class Family(Protocol):
    """A loaded model: three stateless functions of tensors, and the shapes that they want."""

    device: torch.device
    dtype: torch.dtype  # of the latents; mostly that of the weights too
    scheduler: Any  # diffusers' own, that the model came with: read, and never stepped
    flow_sigmas: FlowSigmas | None  # None: not trained by flow matching
    latent_channels: int
    pixels_per_latent: int  # along one side
    latents_per_patch: int  # along one side: 1, or what a transformer folds into one token
    max_side: int | None  # pixels; None: the model has no limit of its own
    buckets: BucketsByShape  # set by who has tested it

    def needs_guidance_row(self, guidance_scale: float) -> bool:
        """Whether a generation at this scale needs an unconditional row besides the conditional one.

        Never where the model was distilled to take the scale as an input.
        """

    def encode(self, text: str, *, is_negative: bool = False) -> Encoding:
        """One text alone, always: embeddings then cannot depend on what else is being encoded."""

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The model output `(R, C, h, w)` for R rows, each at its own timestep `(R,)`."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels `(1, 3, H, W)` in [-1, 1] of one row of latents `(1, C, h, w)`, always one."""


@runtime_checkable
class CachingFamily(Family, Protocol):
    """A family whose rows can leave out the deep part of the model, where its weights are laid out so."""

    can_cache_steps: bool

    def predict_partly(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        *,
        num_deep_rows: int,
        features: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The model output `(R, C, h, w)`, and the features `(N, ...)` that its deep part gave N rows.

        The last R - N rows are shallow: they stand on their `features` of an earlier step (`None`: there
        are no such rows). The deep part runs on the first `num_deep_rows` >= N rows, a bucket's number;
        what it gives shallow rows among them is dropped. With N = R the output is `predict`'s, bit for bit.
        """


def can_cache_steps(family: Family) -> bool:
    """Whether rows of this family's loaded model can run shallow steps."""
    return isinstance(family, CachingFamily) and family.can_cache_steps
