"""diffusers' `SD3Transformer2DModel` walked block by block: joint blocks over an image and a text stream.

Owns the order of the submodules around the blocks, that of its `forward`; which rows run which blocks is
`transformer_walk`'s.
"""

from typing import Any

from torch import Tensor

from engine.partial_forwards.transformer import Tokens, run_blocks, unpatchify


class StableDiffusion3PartialForward:
    """Walks one transformer; `fits_partial_forward` says beforehand whether it is of the kind known here."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer

    @staticmethod
    def fits_partial_forward(transformer: Any) -> bool:
        """Whether `transformer` is Stable Diffusion 3's, with a block besides the first."""
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
        """The output `(R, C, h, w)` of `forward` with these arguments, and the first rows' features."""
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
    """A `JointTransformerBlock`, with a second attention or without; the last one drops the text."""

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
