"""diffusers' `FluxTransformer2DModel` walked block by block: double blocks, then single ones.

Owns the order of the submodules around the blocks, that of its `forward`; which rows run which blocks is
`transformer_walk`'s.
"""

from typing import Any

import torch
from torch import Tensor

from engine.partial_forwards.transformer import Tokens, run_blocks


class FluxPartialForward:
    """Walks one transformer; `fits_partial_forward` says beforehand whether it is of the kind known here."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer

    @staticmethod
    def fits_partial_forward(transformer: Any) -> bool:
        """Whether `transformer` is FLUX.1's, with a block besides the first."""
        is_known = type(transformer).__name__ == "FluxTransformer2DModel"
        return is_known and len(_blocks(transformer)) > 1

    def predict(
        self,
        *,
        hidden_states: Tensor,
        timestep: Tensor,
        guidance: Tensor | None,
        pooled_projections: Tensor,
        encoder_hidden_states: Tensor,
        txt_ids: Tensor,
        img_ids: Tensor,
        num_full_rows: int,
        features: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The output `(R, tokens, 4 C)` of `forward` with these arguments, and the first rows' features."""
        model = self._transformer
        image = model.x_embedder(hidden_states)
        times = [timestep.to(image.dtype) * 1000]
        if guidance is not None:
            times.append(guidance.to(image.dtype) * 1000)
        tokens = Tokens(
            image=image,
            text=model.context_embedder(encoder_hidden_states),
            time_embeds=model.time_text_embed(*times, pooled_projections),
        )
        rotation = model.pos_embed(torch.cat((txt_ids, img_ids), dim=0))  # of tokens: the same for every row
        blocks = [_Block(block, rotation) for block in _blocks(model)]
        image, new = run_blocks(blocks, tokens, num_full_rows, features)
        return model.proj_out(model.norm_out(image, tokens.time_embeds)), new


def _blocks(transformer: Any) -> list[Any]:
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


class _Block:
    """A double block, or a single one, which joins the two streams and parts them again: called alike."""

    def __init__(self, block: Any, rotation: tuple[Tensor, Tensor]) -> None:
        self._block = block
        self._rotation = rotation

    def __call__(self, tokens: Tokens) -> Tokens:
        text, image = self._block(
            hidden_states=tokens.image,
            encoder_hidden_states=tokens.text,
            temb=tokens.time_embeds,
            image_rotary_emb=self._rotation,
            joint_attention_kwargs=None,
        )
        return Tokens(image, text, tokens.time_embeds)
