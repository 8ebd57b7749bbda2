"""Stable Diffusion XL (Podell et al. 2023): two CLIP encoders, a UNet that is told sizes, an autoencoder.

Owns the loaded weights and their calling conventions, those of diffusers' `StableDiffusionXLPipeline`,
whose own `encode_prompt` is called. It does not know of steps or step batches, nor of the refiner.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from engine.buckets import UNTESTED, BucketsByShape
from engine.families.autoencoder import Autoencoder
from engine.families.family import Conditions, Encoding
from engine.families.guidance_input import embed_guidance
from engine.families.truncation import Reader, unread
from engine.families.unet_walk import UNetWalk
from engine.sampling import FlowSigmas


class StableDiffusionXL:
    """The `Family` of Stable Diffusion XL, and of few-step models in its layout (SDXL-Turbo, LCM)."""

    PIPELINES: ClassVar[tuple[Any, ...]] = (StableDiffusionXLPipeline,)
    # No invisible watermark: it would need another library and change the pixels.
    LEFT_OUT: ClassVar[Mapping[str, Any]] = {
        "feature_extractor": None,
        "image_encoder": None,
        "add_watermarker": False,
    }
    CAN_LACK: ClassVar[tuple[str, ...]] = ()
    buckets: BucketsByShape = UNTESTED
    max_side: int | None = None
    flow_sigmas: FlowSigmas | None = None
    latents_per_patch = 1

    def __init__(self, pipeline: Any) -> None:
        for name in ("text_encoder", "text_encoder_2", "unet", "vae"):
            getattr(pipeline, name).eval().requires_grad_(False)
        self._pipeline = pipeline
        self._unet, self._vae = pipeline.unet, pipeline.vae
        self._autoencoder = Autoencoder(self._vae, takes_statistics=True)
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

    def encode(self, text: str, *, is_negative: bool = False) -> Encoding:
        """Both encoders' embeddings `(1, tokens, width)` and the second one's pooled `(1, width)`.

        No negative prompt means zeros, where the model was trained so (`force_zeros_for_empty_prompt`).
        """
        embeds, _, pooled, _ = self._pipeline.encode_prompt(
            text, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if is_negative and not text and self._pipeline.config.force_zeros_for_empty_prompt:
            embeds, pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
        tokenizers = (self._pipeline.tokenizer, self._pipeline.tokenizer_2)
        readers = [Reader(tokenizer, tokenizer.model_max_length) for tokenizer in tokenizers]
        return Encoding(embeds.to(self.dtype), pooled.to(self.dtype), unread(text, readers))

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The UNet's output, epsilon or v, `(R, C, h, w)`, told that nothing was scaled or cropped."""
        output: Tensor = self._unet(
            latents,
            timesteps,
            timestep_cond=self._guidance_input(conditions, latents.dtype),
            encoder_hidden_states=conditions.prompt_embeds,
            added_cond_kwargs=self._added(latents, conditions),
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
            self._added(latents, conditions),
            num_deep_rows,
            features,
            self._guidance_input(conditions, latents.dtype),
        )

    def _added(self, latents: Tensor, conditions: Conditions) -> dict[str, Tensor]:
        """The pooled embeddings, and that the image is of this size, whole and uncropped."""
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=self.dtype, device=latents.device)
        return {"text_embeds": conditions.pooled_embeds, "time_ids": sizes.expand(len(latents), -1)}

    def decode(self, latents: Tensor) -> Tensor:
        """The autoencoder's pixels `(1, 3, H, W)` in [-1, 1]."""
        return self._autoencoder.decode(latents)
