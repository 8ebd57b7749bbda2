"""SANA (Xie et al. 2024): Gemma 2 as text encoder, a linear transformer, an autoencoder that divides by 32.

Owns the loaded weights and their calling conventions, those of diffusers' `SanaPipeline`, whose own
`encode_prompt` is called with its own instruction to Gemma. It does not know of steps or step batches, nor
of the pipeline's bins: an image has the size that was asked for.
"""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import SanaPipeline
from torch import Tensor

from engine.buckets import UNTESTED, BucketsByShape
from engine.families.autoencoder import Autoencoder
from engine.families.family import Conditions, Encoding
from engine.families.sana_walk import SanaWalk
from engine.families.truncation import Reader, unread
from engine.sampling import FlowSigmas

MAX_GEMMA_TOKENS = 300
INSTRUCTION: list[str] = (
    inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
)
"""What the pipeline asks of Gemma before a prompt, never before a negative prompt."""


class Sana:
    """The `Family` of SANA; latents are kept in fp32 whatever the weights are in, as the pipeline does."""

    PIPELINES: ClassVar[tuple[Any, ...]] = (SanaPipeline,)
    LEFT_OUT: ClassVar[Mapping[str, Any]] = {}
    CAN_LACK: ClassVar[tuple[str, ...]] = ()
    buckets: BucketsByShape = UNTESTED
    max_side: int | None = None
    flow_sigmas: FlowSigmas | None = "own"
    dtype = torch.float32

    def __init__(self, pipeline: Any) -> None:
        for name in ("text_encoder", "transformer", "vae"):
            getattr(pipeline, name).eval().requires_grad_(False)
        self._pipeline = pipeline
        self._transformer, self._vae = pipeline.transformer, pipeline.vae
        self._autoencoder = Autoencoder(self._vae)
        self.scheduler: Any = pipeline.scheduler
        self.device: torch.device = self._transformer.device
        self.latent_channels: int = self._transformer.config.in_channels
        self.pixels_per_latent: int = pipeline.vae_scale_factor
        self.latents_per_patch: int = self._transformer.config.patch_size
        self._walk = SanaWalk(self._transformer)
        self.can_cache_steps: bool = SanaWalk.can_walk(self._transformer)

    def needs_guidance_row(self, guidance_scale: float) -> bool:
        """Guidance is applied after the forward pass, so a scale of 1 or less saves a row."""
        return guidance_scale > 1

    def encode(self, text: str, *, is_negative: bool = False) -> Encoding:
        """Gemma's embeddings `(1, tokens, width)` of the text in lower case, and which are padding.

        Of the instruction the transformer is shown the first token and the last.
        """
        embeds, mask, _, _ = self._pipeline.encode_prompt(
            text,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=MAX_GEMMA_TOKENS,
            complex_human_instruction=None if is_negative else INSTRUCTION,
        )
        warnings = self._warnings(text.lower().strip(), "" if is_negative else "\n".join(INSTRUCTION))
        return Encoding(embeds.to(self._transformer.dtype), warnings=warnings, attention_mask=mask)

    def _warnings(self, text: str, instruction: str) -> tuple[str, ...]:
        tokenizer, limit = self._pipeline.tokenizer, MAX_GEMMA_TOKENS
        if instruction:
            limit += len(tokenizer.encode(instruction)) - 2  # as the pipeline counts
        return unread(text, [Reader(tokenizer, limit, instruction=instruction)])

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The transformer's output, a velocity, `(R, C, h, w)`, fp32."""
        inputs = self._inputs(latents, timesteps, conditions)
        output: Tensor = self._transformer(**inputs, return_dict=False)[0]
        return output.float()

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
        return output.float(), features

    def _inputs(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> dict[str, Tensor]:
        return {
            "hidden_states": latents.to(self._transformer.dtype),
            "encoder_hidden_states": conditions.prompt_embeds,
            "encoder_attention_mask": conditions.attention_masks,
            "timestep": timesteps * self._transformer.config.timestep_scale,
        }

    def decode(self, latents: Tensor) -> Tensor:
        """The autoencoder's pixels `(1, 3, H, W)` in [-1, 1]."""
        return self._autoencoder.decode(latents)
