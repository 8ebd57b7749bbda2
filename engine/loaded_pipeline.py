"""A pipeline as diffusers has just read it, made ready to draw: dtype of the VAE, limits of its texts.

Owns what holds for the components of any pipeline class, so that no family needs to know it: which
autoencoder works in full precision, how many tokens a text encoder has places for, and for which it has
embeddings.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from engine.errors import PromptInvalid

NUM_ENCODERS = 4
UPCAST_IN_BFLOAT16 = ("StableDiffusionXLPipeline",)
"""Pipelines whose VAE has too few digits for smooth colours in bf16, which diffusers would leave it in."""


def make_ready(pipeline: Any) -> Any:
    """Make the pipeline ready to draw and return it; call this before its components move or are compiled."""
    _upcast(pipeline)
    for tokenizer, encoder in _text_encoders(pipeline):
        _limit_to_positions(tokenizer, encoder)
        _limit_to_vocabulary(tokenizer, encoder)
    if hasattr(pipeline, "tokenizer_max_length"):  # read once, when the pipeline was made
        pipeline.tokenizer_max_length = pipeline.tokenizer.model_max_length
    return pipeline


def _upcast(pipeline: Any) -> None:
    """Full precision for a VAE that says `force_upcast`: in fp16 its activations overflow to black images.

    `StableDiffusionXLPipeline` of diffusers does so in its own call; a VAE overflows in any other as well.
    """
    vae = getattr(pipeline, "vae", None)
    dtypes = [torch.float16]
    if type(pipeline).__name__ in UPCAST_IN_BFLOAT16:
        dtypes.append(torch.bfloat16)
    if vae is not None and getattr(vae.config, "force_upcast", False) and vae.dtype in dtypes:
        vae.to(torch.float32)


def _text_encoders(pipeline: Any) -> list[tuple[Any, Module]]:
    """Each tokenizer with its text encoder, as far as the pipeline has them."""
    endings = ["", *(f"_{number}" for number in range(2, NUM_ENCODERS + 1))]
    pairs = [
        (getattr(pipeline, f"tokenizer{end}", None), getattr(pipeline, f"text_encoder{end}", None))
        for end in endings
    ]
    return [
        (tokenizer, encoder)
        for tokenizer, encoder in pairs
        if tokenizer is not None and isinstance(encoder, Module)
    ]


def _limit_to_positions(tokenizer: Any, encoder: Any) -> None:
    """A tokenizer that names no limit, or a later one, reads on to where the encoder has no place left."""
    num_positions = getattr(encoder.config, "max_position_embeddings", None)
    if num_positions is not None and tokenizer.model_max_length > num_positions:
        tokenizer.model_max_length = num_positions


def _limit_to_vocabulary(tokenizer: Any, encoder: Any) -> None:
    """Have a token that the encoder has no embedding for refused as the prompt's own fault.

    On a GPU its number would be read beyond the table, which ends the process; it is looked at only where the
    tokenizer knows more tokens than the encoder.
    """
    embeddings = encoder.get_input_embeddings()
    num_embeddings = embeddings.num_embeddings
    if len(tokenizer) <= num_embeddings:
        return

    def look(_: Module, arguments: tuple[Tensor, ...]) -> None:
        unknown = arguments[0][arguments[0] >= num_embeddings]
        if unknown.numel():
            token = tokenizer.convert_ids_to_tokens(int(unknown[0]))
            raise PromptInvalid(
                f"its token {token!r} is not among the {num_embeddings} that the text encoder"
                f" ({type(encoder).__name__}) knows"
            )

    embeddings.register_forward_pre_hook(look)
