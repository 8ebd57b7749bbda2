"""Runs diffusers' `SD3Transformer2DModel` block by block: joint blocks over image and text tokens.

It calls the submodules around the blocks in the order of the model's `forward`. `run_blocks` decides which
rows run which blocks.
"""

from typing import Any

from torch import Tensor

from engine.partial_forwards.transformer import Tokens, run_blocks, unpatchify


class StableDiffusion3PartialForward:
    """A Stable Diffusion 3 transformer in which cached rows run only the first block."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer

    @staticmethod
    def supports(transformer: Any) -> bool:
        """Whether this is Stable Diffusion 3's transformer with at least two blocks."""
        is_known = type(transformer).__name__ == "SD3Transformer2DModel"
        return is_known and len(transformer.transformer_blocks) > 1

    def predict(
        self,
        *,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        num_full_rows: int,
        features: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The output `(R, C, h, w)` of `forward`, and the features of the full rows, which are first."""
        model = self._transformer
        height, width = hidden_states.shape[-2:]
        tokens = Tokens(
            image=model.pos_embed(hidden_states).contiguous(),
            text=model.context_embedder(encoder_hidden_states),
            time_embeds=model.time_text_embed(timestep, pooled_projections),
        )
        blocks = [_JointBlock(block) for block in model.transformer_blocks]
        image, new = run_blocks(blocks, tokens, num_full_rows, features)
        image = model.proj_out(model.norm_out(image, tokens.time_embeds))
        return unpatchify(image, height, width, model.config.patch_size), new


class _JointBlock:
    """A `JointTransformerBlock`, with or without a second attention; the last one returns no text."""

    def __init__(self, block: Any) -> None:
        self._block = block

    def __call__(self, tokens: Tokens) -> Tokens:
        text, image = self._block(
            hidden_states=tokens.image,
            encoder_hidden_states=tokens.text,
            temb=tokens.time_embeds,
            joint_attention_kwargs=None,
        )
        return Tokens(image, text, tokens.time_embeds)
