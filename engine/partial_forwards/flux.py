"""Runs diffusers' `FluxTransformer2DModel` block by block: double blocks, then single blocks.

It calls the submodules around the blocks in the order of the model's `forward`. `run_blocks` decides which
rows run which blocks.
"""

from typing import Any

import torch
from torch import Tensor

from engine.partial_forwards.transformer import Tokens, run_blocks


class FluxPartialForward:
    """A FLUX.1 transformer in which cached rows run only the first block."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer

    @staticmethod
    def supports(transformer: Any) -> bool:
        """Whether this is FLUX.1's transformer with at least two blocks."""
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
        """The output `(R, tokens, 4 C)` of `forward`, and the features of the full rows, which are first."""
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
        rotation = model.pos_embed(torch.cat((txt_ids, img_ids), dim=0))  # by token, the same for every row
        blocks = [_Block(block, rotation) for block in _blocks(model)]
        image, new = run_blocks(blocks, tokens, num_full_rows, features)
        return model.proj_out(model.norm_out(image, tokens.time_embeds)), new


def _blocks(transformer: Any) -> list[Any]:
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


class _Block:
    """A double or a single block; diffusers calls both with separate image and text tokens."""

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
