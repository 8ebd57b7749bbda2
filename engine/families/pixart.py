"""PixArt-Alpha and -Sigma (Chen et al. 2023, 2024): T5, a transformer with AdaLN-single, an autoencoder.

Owns the loaded weights and their calling conventions, those of diffusers' `PixArtAlphaPipeline` and
`PixArtSigmaPipeline`, whose own `encode_prompt` is called. It does not know of steps or step batches, nor of
the pipelines' bins: an image has the size that was asked for.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline
from torch import Tensor

from engine.buckets import UNTESTED, BucketsByShape
from engine.families.autoencoder import Autoencoder
from engine.families.family import Conditions, Encoding
from engine.families.pixart_walk import PixArtWalk
from engine.families.truncation import Reader, unread
from engine.sampling import FlowSigmas

MAX_T5_TOKENS_ALPHA = 120  # what the pipelines pad to
MAX_T5_TOKENS_SIGMA = 300


class PixArt:
    """The `Family` of PixArt: T5's padding is masked, and Alpha at 1024 is told its size."""

    PIPELINES: ClassVar[tuple[Any, ...]] = (PixArtAlphaPipeline, PixArtSigmaPipeline)
    LEFT_OUT: ClassVar[Mapping[str, Any]] = {}
    CAN_LACK: ClassVar[tuple[str, ...]] = ()
    buckets: BucketsByShape = UNTESTED
    max_side: int | None = None
    flow_sigmas: FlowSigmas | None = None

    def __init__(self, pipeline: Any) -> None:
        for name in ("text_encoder", "transformer", "vae"):
            getattr(pipeline, name).eval().requires_grad_(False)
        self._pipeline = pipeline
        self._transformer, self._vae = pipeline.transformer, pipeline.vae
        self._autoencoder = Autoencoder(self._vae)
        is_sigma = isinstance(pipeline, PixArtSigmaPipeline)
        self._max_tokens = MAX_T5_TOKENS_SIGMA if is_sigma else MAX_T5_TOKENS_ALPHA
        self.scheduler: Any = pipeline.scheduler
        self.device: torch.device = self._transformer.device
        self.dtype: torch.dtype = self._transformer.dtype
        self.latent_channels: int = self._transformer.config.in_channels
        self.pixels_per_latent: int = pipeline.vae_scale_factor
        self.latents_per_patch: int = self._transformer.config.patch_size
        self._walk = PixArtWalk(self._transformer)
        self.can_cache_steps: bool = PixArtWalk.can_walk(self._transformer)

    def needs_guidance_row(self, guidance_scale: float) -> bool:
        """Guidance is applied after the forward pass, so a scale of 1 or less saves a row."""
        return guidance_scale > 1

    def encode(self, text: str, *, is_negative: bool = False) -> Encoding:  # noqa: ARG002  both read alike
        """T5's embeddings `(1, tokens, width)` of the text in lower case, and which are padding."""
        embeds, mask, _, _ = self._pipeline.encode_prompt(
            text,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self._max_tokens,
        )
        warnings = unread(text.lower().strip(), [Reader(self._pipeline.tokenizer, self._max_tokens)])
        return Encoding(embeds.to(self.dtype), warnings=warnings, attention_mask=mask)

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The transformer's epsilon `(R, C, h, w)`; the variances that it learned besides are dropped."""
        inputs = self._inputs(latents, timesteps, conditions)
        output: Tensor = self._transformer(**inputs, return_dict=False)[0]
        return output[:, : self.latent_channels]

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
        return output[:, : self.latent_channels], features

    def _inputs(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> dict[str, Any]:
        return {
            "hidden_states": latents,
            "encoder_hidden_states": conditions.prompt_embeds,
            "encoder_attention_mask": conditions.attention_masks,
            "timestep": timesteps,
            "added_cond_kwargs": self._sizes(latents),
        }

    def _sizes(self, latents: Tensor) -> dict[str, Tensor | None]:
        """Height and width in pixels, and their ratio, for each row, where the model was trained on them."""
        if not self._transformer.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        resolution, aspect_ratio = torch.tensor([[height, width]]), torch.tensor([[height / width]])
        return {
            "resolution": resolution.to(latents).expand(len(latents), -1),
            "aspect_ratio": aspect_ratio.to(latents).expand(len(latents), -1),
        }

    def decode(self, latents: Tensor) -> Tensor:
        """The autoencoder's pixels `(1, 3, H, W)` in [-1, 1]."""
        return self._autoencoder.decode(latents)
