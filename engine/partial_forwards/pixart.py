"""Runs diffusers' `PixArtTransformer2DModel` block by block: self-attention, then attention to the text.

It calls the submodules around the blocks in the order of the model's `forward`. `run_blocks` decides which
rows run which blocks.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from engine.partial_forwards.transformer import Tokens, run_blocks, text_bias, unpatchify


class PixArtPartialForward:
    """A PixArt transformer in which cached rows run only the first block."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer

    @staticmethod
    def supports(transformer: Any) -> bool:
        """Whether this is PixArt's transformer with at least two blocks."""
        is_known = type(transformer).__name__ == "PixArtTransformer2DModel"
        return is_known and len(transformer.transformer_blocks) > 1

    def predict(
        self,
        *,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        timestep: Tensor,
        added_cond_kwargs: Mapping[str, Tensor | None],
        num_full_rows: int,
        features: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The output `(R, 2 C, h, w)` of `forward`, and the features of the full rows, which are first."""
        model = self._transformer
        height, width = hidden_states.shape[-2:]
        image = model.pos_embed(hidden_states)
        time_embeds, last_time_embeds = model.adaln_single(
            timestep, added_cond_kwargs, batch_size=len(image), hidden_dtype=image.dtype
        )
        text = encoder_hidden_states
        if model.caption_projection is not None:
            text = model.caption_projection(text)
        tokens = Tokens(image, text, time_embeds, text_bias(encoder_attention_mask, hidden_states.dtype))
        blocks = [_CrossAttendingBlock(block) for block in model.transformer_blocks]
        image, new = run_blocks(blocks, tokens, num_full_rows, features)
        shift, scale = (model.scale_shift_table[None] + last_time_embeds[:, None]).chunk(2, dim=1)
        image = model.proj_out(model.norm_out(image) * (1 + scale) + shift)
        return unpatchify(image, height, width, model.config.patch_size), new


class _CrossAttendingBlock:
    """A `BasicTransformerBlock`, which reads the text tokens and does not change them."""

    def __init__(self, block: Any) -> None:
        self._block = block

    def __call__(self, tokens: Tokens) -> Tokens:
        image = self._block(
            tokens.image,
            attention_mask=None,
            encoder_hidden_states=tokens.text,
            encoder_attention_mask=tokens.text_bias,
            timestep=tokens.time_embeds,
            cross_attention_kwargs=None,
            class_labels=None,
        )
        return replace(tokens, image=image)
