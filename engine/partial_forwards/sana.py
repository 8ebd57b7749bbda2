"""diffusers' `SanaTransformer2DModel` walked block by block: linear attention, text, and a convolution.

Owns the order of the submodules around the blocks, that of its `forward`; which rows run which blocks is
`transformer_walk`'s.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from engine.partial_forwards.transformer import Tokens, run_blocks, text_bias, unpatchify


class SanaPartialForward:
    """Walks one transformer; `fits_partial_forward` says beforehand whether it is of the kind known here."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer

    @staticmethod
    def fits_partial_forward(transformer: Any) -> bool:
        """Whether `transformer` is SANA's, with a block besides the first and no guidance as an input."""
        is_known = type(transformer).__name__ == "SanaTransformer2DModel"
        return is_known and not transformer.config.guidance_embeds and len(transformer.transformer_blocks) > 1

    def predict(
        self,
        *,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        timestep: Tensor,
        num_full_rows: int,
        features: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The output `(R, C, h, w)` of `forward` with these arguments, and the first rows' features."""
        model = self._transformer
        height, width = hidden_states.shape[-2:]
        patch_size = model.config.patch_size
        image = model.patch_embed(hidden_states)
        time_embeds, last_time_embeds = model.time_embed(
            timestep, batch_size=len(image), hidden_dtype=image.dtype
        )
        text = model.caption_norm(model.caption_projection(encoder_hidden_states))
        tokens = Tokens(image, text, time_embeds, text_bias(encoder_attention_mask, hidden_states.dtype))
        blocks = [
            _ConvolvingBlock(block, height // patch_size, width // patch_size)
            for block in model.transformer_blocks
        ]
        image, new = run_blocks(blocks, tokens, num_full_rows, features)
        image = model.proj_out(model.norm_out(image, last_time_embeds, model.scale_shift_table))
        return unpatchify(image, height, width, patch_size), new


class _ConvolvingBlock:
    """A `SanaTransformerBlock`, which must know how many tokens a row and a column of the image have."""

    def __init__(self, block: Any, height: int, width: int) -> None:
        self._block = block
        self._height = height
        self._width = width

    def __call__(self, tokens: Tokens) -> Tokens:
        image = self._block(
            tokens.image,
            None,
            tokens.text,
            tokens.text_bias,
            tokens.time_embeds,
            self._height,
            self._width,
        )
        return replace(tokens, image=image)
