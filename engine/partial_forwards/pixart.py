"""diffusers' `PixArtTransformer2DModel` walked block by block: self-attention, then attention to the text.

Owns the order of the submodules around the blocks, that of its `forward`; which rows run which blocks is
`transformer_walk`'s.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from engine.partial_forwards.transformer import Tokens, run_blocks, text_bias, unpatchify


class PixArtPartialForward:
    """Walks one transformer; `fits_partial_forward` says beforehand whether it is of the kind known here."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer

    @staticmethod
    def fits_partial_forward(transformer: Any) -> bool:
        """Whether `transformer` is PixArt's, with a block besides the first."""
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
        """The output `(R, 2 C, h, w)` of `forward` with these arguments, and the first rows' features."""
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
    """A `BasicTransformerBlock`: the text is read by all blocks and changed by none."""

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
