"""Stable Diffusion 1 and 2 (Rombach et al. 2022): a CLIP text encoder, a UNet and an autoencoder.

Owns the loaded weights and their calling conventions, those of diffusers' `StableDiffusionPipeline`,
and of its `LatentConsistencyModelPipeline`. It does not know of steps or step batches.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import LatentConsistencyModelPipeline, StableDiffusionPipeline
from torch import Tensor

from engine.buckets import UNTESTED, BucketsByShape
from engine.families.autoencoder import Autoencoder
from engine.families.family import Conditions, Encoding
from engine.families.guidance_input import embed_guidance
from engine.families.truncation import Reader, unread
from engine.families.unet_walk import UNetWalk
from engine.sampling import FlowSigmas


class StableDiffusion:
    """The `Family` of Stable Diffusion 1 and 2, and of few-step models in their layout (SD-Turbo, LCM)."""

    PIPELINES: ClassVar[tuple[Any, ...]] = (StableDiffusionPipeline, LatentConsistencyModelPipeline)
    LEFT_OUT: ClassVar[Mapping[str, Any]] = {
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }
    CAN_LACK: ClassVar[tuple[str, ...]] = ()
    buckets: BucketsByShape = UNTESTED
    max_side: int | None = None
    flow_sigmas: FlowSigmas | None = None
    latents_per_patch = 1

    def __init__(self, pipeline: Any) -> None:
        self._tokenizer = pipeline.tokenizer
        self._text_encoder = pipeline.text_encoder.eval().requires_grad_(False)
        self._unet = pipeline.unet.eval().requires_grad_(False)
        self._vae = pipeline.vae.eval().requires_grad_(False)
        self._autoencoder = Autoencoder(self._vae)
        # The pipeline has corrected an outdated steps_offset by now.
        self.scheduler: Any = pipeline.scheduler
        self._guidance_width: int | None = self._unet.config.time_cond_proj_dim
        self.device: torch.device = self._unet.device
        self.dtype: torch.dtype = self._unet.dtype
        self.latent_channels: int = self._unet.config.in_channels
        self.pixels_per_latent: int = pipeline.vae_scale_factor
        self._walk = UNetWalk(self._unet)
        self.can_cache_steps: bool = UNetWalk.can_walk(self._unet)

    def needs_guidance_row(self, guidance_scale: float) -> bool:
        """Guidance is applied after the forward pass, so a scale of 1 or less saves a row.

        A distilled UNet (LCM) takes the scale as an input and never needs one.
        """
        return guidance_scale > 1 and self._guidance_width is None

    def encode(self, text: str, *, is_negative: bool = False) -> Encoding:  # noqa: ARG002  both read alike
        """The text's CLIP embeddings `(1, tokens, width)`, and a warning when its end was cut off."""
        limit = self._tokenizer.model_max_length
        tokens = self._tokenizer(
            text, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        )
        uses_mask = getattr(self._text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.device) if uses_mask else None
        embeds = self._text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]
        return Encoding(embeds.to(self.dtype), warnings=unread(text, [Reader(self._tokenizer, limit)]))

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The UNet's output, epsilon or v, `(R, C, h, w)`."""
        output: Tensor = self._unet(
            latents,
            timesteps,
            timestep_cond=self._guidance_input(conditions, latents.dtype),
            encoder_hidden_states=conditions.prompt_embeds,
            return_dict=False,
        )[0]
        return output

    def _guidance_input(self, conditions: Conditions, dtype: torch.dtype) -> Tensor | None:
        if self._guidance_width is None:
            return None
        return embed_guidance(conditions.guidance_scales, self._guidance_width).to(dtype)

    def predict_partly(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        *,
        num_deep_rows: int,
        features: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`CachingFamily`'s, by the walk over the UNet; the features are what the last layer reads."""
        return self._walk.predict(
            latents,
            timesteps,
            conditions.prompt_embeds,
            None,
            num_deep_rows,
            features,
            self._guidance_input(conditions, latents.dtype),
        )

    def decode(self, latents: Tensor) -> Tensor:
        """The autoencoder's pixels `(1, 3, H, W)` in [-1, 1]."""
        return self._autoencoder.decode(latents)
