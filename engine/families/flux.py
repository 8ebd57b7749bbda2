"""FLUX.1 (Black Forest Labs 2024): CLIP and T5, a transformer over 2 x 2 patches, an autoencoder.

Owns the loaded weights and their calling conventions, those of diffusers' `FluxPipeline`, whose own
`encode_prompt` is called. Latents stay `(1, C, h, w)` outside and are packed for the transformer alone:
what a scheduler does to them is elementwise, so that it makes no difference.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline
from torch import Tensor

from engine.buckets import UNTESTED, BucketsByShape
from engine.families.autoencoder import Autoencoder
from engine.families.family import Conditions, Encoding
from engine.families.flux_walk import FluxWalk
from engine.families.truncation import Reader, unread
from engine.sampling import FlowSigmas

NUM_TRAIN_TIMESTEPS = 1000
MAX_T5_TOKENS = 512
MAX_T5_TOKENS_SCHNELL = 256  # what the model without a guidance input was trained with


class Flux:
    """The `Family` of FLUX.1: guidance is an input of the model (dev), or there is none (schnell)."""

    PIPELINES: ClassVar[tuple[Any, ...]] = (FluxPipeline,)
    LEFT_OUT: ClassVar[Mapping[str, Any]] = {"feature_extractor": None, "image_encoder": None}
    CAN_LACK: ClassVar[tuple[str, ...]] = ()
    buckets: BucketsByShape = UNTESTED
    max_side: int | None = None
    flow_sigmas: FlowSigmas | None = "even"
    latents_per_patch = 2

    def __init__(self, pipeline: Any) -> None:
        for name in ("text_encoder", "text_encoder_2", "transformer", "vae"):
            getattr(pipeline, name).eval().requires_grad_(False)
        self._pipeline = pipeline
        self._transformer, self._vae = pipeline.transformer, pipeline.vae
        self._autoencoder = Autoencoder(self._vae, takes_shift=True)
        self._takes_guidance: bool = self._transformer.config.guidance_embeds
        self._max_tokens = MAX_T5_TOKENS if self._takes_guidance else MAX_T5_TOKENS_SCHNELL
        self._readers = (
            Reader(pipeline.tokenizer, pipeline.tokenizer_max_length, "CLIP"),
            Reader(pipeline.tokenizer_2, self._max_tokens, "T5"),
        )
        self.scheduler: Any = pipeline.scheduler
        self.device: torch.device = self._transformer.device
        self.dtype: torch.dtype = self._transformer.dtype
        self.latent_channels: int = self._transformer.config.in_channels // 4
        self.pixels_per_latent: int = pipeline.vae_scale_factor
        self._walk = FluxWalk(self._transformer)
        self.can_cache_steps: bool = FluxWalk.can_walk(self._transformer)

    def needs_guidance_row(self, guidance_scale: float) -> bool:  # noqa: ARG002  no scale does
        """Never: one row, whatever the scale; a negative prompt has no place in this model."""
        return False

    def encode(self, text: str, *, is_negative: bool = False) -> Encoding:  # noqa: ARG002  never negative
        """T5's embeddings `(1, tokens, width)`, and CLIP's pooled ones `(1, width)`."""
        embeds, pooled, _ = self._pipeline.encode_prompt(
            text, device=self.device, max_sequence_length=self._max_tokens
        )
        return Encoding(embeds.to(self.dtype), pooled.to(self.dtype), unread(text, self._readers))

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The transformer's output, a velocity, `(R, C, h, w)`."""
        inputs = self._inputs(latents, timesteps, conditions)
        output: Tensor = self._transformer(**inputs, return_dict=False)[0]
        return _unpack(output, *latents.shape[-2:])

    def predict_partly(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        *,
        num_deep_rows: int,
        features: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`CachingFamily`'s, by the walk over the blocks; the features are what all but the first one add."""
        inputs = self._inputs(latents, timesteps, conditions)
        output, features = self._walk.predict(**inputs, num_deep_rows=num_deep_rows, features=features)
        return _unpack(output, *latents.shape[-2:]), features

    def _inputs(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> dict[str, Any]:
        height, width = latents.shape[-2:]
        num_tokens = conditions.prompt_embeds.shape[1]
        return {
            "hidden_states": _pack(latents),
            "timestep": timesteps.to(latents.dtype) / NUM_TRAIN_TIMESTEPS,
            "guidance": conditions.guidance_scales if self._takes_guidance else None,
            "pooled_projections": conditions.pooled_embeds,
            "encoder_hidden_states": conditions.prompt_embeds,
            "txt_ids": torch.zeros(num_tokens, 3, dtype=latents.dtype, device=latents.device),
            "img_ids": _positions(height // 2, width // 2).to(latents),
        }

    def decode(self, latents: Tensor) -> Tensor:
        """The autoencoder's pixels `(1, 3, H, W)` in [-1, 1]."""
        return self._autoencoder.decode(latents)


def _pack(latents: Tensor) -> Tensor:
    """`(R, C, h, w)` to a token for each 2 x 2 patch, `(R, h/2 * w/2, 4 C)`."""
    patches: Tensor = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (R, C, h/2, 2, w/2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The reverse of `_pack`."""
    patches: Tensor = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, (height // 2, width // 2))
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _positions(height: int, width: int) -> Tensor:
    """Row and column of every image token, `(h * w, 3)`; the first number is zero."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1)
