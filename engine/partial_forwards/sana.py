"""Runs diffusers' `SanaTransformer2DModel` block by block: linear attention, text, and a convolution.

It calls the submodules around the blocks in the order of the model's `forward`. `run_blocks` decides which
rows run which blocks.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from engine.partial_forwards.transformer import Tokens, run_blocks, text_bias, unpatchify


class SanaPartialForward:
    """A SANA transformer in which cached rows run only the first block."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer

    @staticmethod
    def supports(transformer: Any) -> bool:
        """Whether this is SANA's transformer with at least two blocks and without a guidance input."""
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
        """The output `(R, C, h, w)` of `forward`, and the features of the full rows, which are first."""
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
    """A `SanaTransformerBlock`, whose convolution needs the height and width of the image in tokens."""

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
