"""Stable Diffusion 3 (Esser et al. 2024): two CLIP text encoders, T5, a transformer and an autoencoder.

Owns the loaded weights and their calling conventions, those of diffusers' `StableDiffusion3Pipeline`,
whose own `encode_prompt` is called. It does not know of steps or step batches.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from engine.buckets import UNTESTED, BucketsByShape
from engine.families.autoencoder import Autoencoder
from engine.families.family import Conditions, Encoding
from engine.families.stable_diffusion_3_walk import StableDiffusion3Walk
from engine.families.truncation import Reader, unread
from engine.sampling import FlowSigmas

MAX_T5_TOKENS = 256


class StableDiffusion3:
    """The `Family` of Stable Diffusion 3 and 3.5; a folder without T5 (`text_encoder_3`) works too."""

    PIPELINES: ClassVar[tuple[Any, ...]] = (StableDiffusion3Pipeline,)
    LEFT_OUT: ClassVar[Mapping[str, Any]] = {"feature_extractor": None, "image_encoder": None}
    CAN_LACK: ClassVar[tuple[str, ...]] = ("text_encoder_3", "tokenizer_3")
    buckets: BucketsByShape = UNTESTED
    flow_sigmas: FlowSigmas | None = "own"

    def __init__(self, pipeline: Any) -> None:
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae"):
            if getattr(pipeline, name) is not None:
                getattr(pipeline, name).eval().requires_grad_(False)
        self._pipeline = pipeline
        self._transformer, self._vae = pipeline.transformer, pipeline.vae
        self._autoencoder = Autoencoder(self._vae, takes_shift=True)
        self._readers = [
            Reader(one, pipeline.tokenizer_max_length, "CLIP")
            for one in (pipeline.tokenizer, pipeline.tokenizer_2)
        ]
        if pipeline.text_encoder_3 is not None:
            self._readers.append(Reader(pipeline.tokenizer_3, MAX_T5_TOKENS, "T5"))
        self.scheduler: Any = pipeline.scheduler
        self.device: torch.device = self._transformer.device
        self.dtype: torch.dtype = self._transformer.dtype
        self.latent_channels: int = self._transformer.config.in_channels
        self.pixels_per_latent: int = pipeline.vae_scale_factor
        self.latents_per_patch: int = self._transformer.config.patch_size
        # Its positions are cut out of a table of fixed size: a longer side is an error of the transformer's.
        max_patches = self._transformer.config.pos_embed_max_size
        self.max_side: int | None = (
            max_patches * self.latents_per_patch * self.pixels_per_latent if max_patches else None
        )
        self._walk = StableDiffusion3Walk(self._transformer)
        self.can_cache_steps: bool = StableDiffusion3Walk.can_walk(self._transformer)

    def needs_guidance_row(self, guidance_scale: float) -> bool:
        """Guidance is applied after the forward pass, so a scale of 1 or less saves a row."""
        return guidance_scale > 1

    def encode(self, text: str, *, is_negative: bool = False) -> Encoding:  # noqa: ARG002  both read alike
        """The encoders' embeddings one behind the other `(1, tokens, width)`, and pooled `(1, width)`.

        CLIP reads less than T5, so a text may have a warning for each.
        """
        embeds, _, pooled, _ = self._pipeline.encode_prompt(
            text,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=MAX_T5_TOKENS,
        )
        return Encoding(embeds.to(self.dtype), pooled.to(self.dtype), unread(text, self._readers))

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The transformer's output, a velocity, `(R, C, h, w)`."""
        inputs = self._inputs(latents, timesteps, conditions)
        output: Tensor = self._transformer(**inputs, return_dict=False)[0]
        return output

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
        return output, features

    def _inputs(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> dict[str, Tensor]:
        return {
            "hidden_states": latents,
            "timestep": timesteps,
            "encoder_hidden_states": conditions.prompt_embeds,
            "pooled_projections": conditions.pooled_embeds,
        }

    def decode(self, latents: Tensor) -> Tensor:
        """The autoencoder's pixels `(1, 3, H, W)` in [-1, 1]."""
        return self._autoencoder.decode(latents)
