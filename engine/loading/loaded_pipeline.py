"""A pipeline as diffusers has just read it, made ready to draw: dtype of the VAE, limits of its texts.

Owns what holds for the components of any pipeline class, so that nothing else needs to know it: which
scheduler is of another kind than the pipeline, which autoencoder works in full precision, how many tokens a
text encoder has places for, and for which it has embeddings.
"""

import inspect
import re
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedTokenizerBase

from engine.errors import LoadError, PromptInvalid
from engine.pipelines.scheduler_classes import CLASSES, kind_of

NUM_ENCODERS = 4
UPCAST_IN_BFLOAT16 = ("StableDiffusionXLPipeline",)
"""Pipelines whose VAE has too few digits for smooth colours in bf16, which diffusers would leave it in."""


def make_ready(pipeline: Any) -> Any:
    """Make the pipeline ready to draw and return it; call this before its components move or are compiled.

    Raises `LoadError` for a scheduler that would draw noise, and for a tokenizer that reads no text.
    """
    _check_scheduler(pipeline)
    _upcast(pipeline)
    # Some pipelines read it off their tokenizer when they are made; others have a number of their own.
    limit = getattr(pipeline, "tokenizer_max_length", None)
    tokenizer = getattr(pipeline, "tokenizer", None)
    is_the_tokenizers = limit is not None and limit == getattr(tokenizer, "model_max_length", None)
    for tokenizer, encoder in _text_encoders(pipeline):
        _limit_to_positions(tokenizer, encoder)
        _limit_to_vocabulary(tokenizer, encoder)
    if is_the_tokenizers:
        pipeline.tokenizer_max_length = pipeline.tokenizer.model_max_length
    return pipeline


def _check_scheduler(pipeline: Any) -> None:
    """Raise `LoadError` for a scheduler of another kind than those that the pipeline's class declares.

    A pipeline for flow matching steps with any scheduler, and would draw noise with one of another kind.
    Other pipelines fail with those for flow matching, which lack methods that they call.
    """
    scheduler, class_name = pipeline.scheduler, type(pipeline).__name__
    name = type(scheduler).__name__
    parameter = inspect.signature(type(pipeline).__init__).parameters.get("scheduler")
    declared = set(re.findall(r"\w+Schedulers?\b", str(parameter)))
    if declared and declared <= set(CLASSES["flow"]) and kind_of(scheduler) not in ("flow", "unknown"):
        raise LoadError(
            f"its scheduler is a {name}, which is not for flow matching as a {class_name} is:"
            f" take the one that the model was published with, a {' or a '.join(sorted(declared))}"
        )
    if scheduler.config.get("thresholding") and getattr(pipeline, "vae", None) is not None:
        raise LoadError(
            f"thresholding: that of its {name} is for pixels, and a {class_name} draws latents, which have no"
            " bounds: set it to false in scheduler_config.json"
        )


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


def _text_encoders(pipeline: Any) -> list[tuple[Any, Any]]:
    """Each tokenizer with its text encoder, as far as there are any; a processor holds a tokenizer."""
    endings = ["", *(f"_{number}" for number in range(2, NUM_ENCODERS + 1))]
    pairs = [
        (getattr(pipeline, f"tokenizer{end}", None), getattr(pipeline, f"text_encoder{end}", None))
        for end in endings
    ]
    held = [(getattr(one, "tokenizer", one), encoder) for one, encoder in pairs]
    return [
        (tokenizer, encoder)
        for tokenizer, encoder in held
        if isinstance(tokenizer, PreTrainedTokenizerBase) and isinstance(encoder, Module)
    ]


def _limit_to_positions(tokenizer: Any, encoder: Any) -> None:
    """A tokenizer that names no limit, or a later one, reads on to where the encoder has no place left."""
    num_own = tokenizer.num_special_tokens_to_add()
    if tokenizer.model_max_length <= num_own:
        raise LoadError(
            f"its tokenizer ({type(tokenizer).__name__}) says model_max_length {tokenizer.model_max_length},"
            f" of which it needs {num_own} itself: take the one that the model was published with"
        )
    num_positions = getattr(encoder.config, "max_position_embeddings", None)
    if num_positions is not None and tokenizer.model_max_length > num_positions:
        tokenizer.model_max_length = num_positions


def _limit_to_vocabulary(tokenizer: Any, encoder: Any) -> None:
    """Refuse a token that the encoder has no embedding for, wherever it comes from.

    On a GPU its number would be read beyond the table, which ends the process; it is looked at only where the
    tokenizer knows more tokens than the encoder.
    """
    if not _knows_more_tokens(tokenizer, encoder):
        return

    def look(_: Module, arguments: tuple[Tensor, ...]) -> None:
        _check_tokens(arguments[0], tokenizer, encoder, "prompt")

    encoder.get_input_embeddings().register_forward_pre_hook(look)


class Vocabularies:
    """The tokenizers of a pipeline that know more tokens than their text encoders."""

    def __init__(self, pipeline: Any) -> None:
        self._pairs = [pair for pair in _text_encoders(pipeline) if _knows_more_tokens(*pair)]

    def check(self, field: str, text: str) -> None:
        """Raise `PromptInvalid` for a token of a text that an encoder does not know; `field` is its name."""
        for tokenizer, encoder in self._pairs:
            tokens = tokenizer(text, truncation=True, return_tensors="pt").input_ids
            _check_tokens(tokens, tokenizer, encoder, field)


def _knows_more_tokens(tokenizer: Any, encoder: Any) -> bool:
    try:
        num_embeddings: int = encoder.get_input_embeddings().num_embeddings
    except NotImplementedError:  # of Kandinsky's `MultilingualCLIP`, which transformers cannot look into
        return False
    return len(tokenizer) > num_embeddings


def _check_tokens(tokens: Tensor, tokenizer: Any, encoder: Any, field: str) -> None:
    num_embeddings = encoder.get_input_embeddings().num_embeddings
    unknown = tokens[tokens >= num_embeddings]
    if unknown.numel():
        token = tokenizer.convert_ids_to_tokens(int(unknown[0]))
        raise PromptInvalid(
            f"{field}: its token {token!r} is not among the {num_embeddings} that the text encoder"
            f" ({type(encoder).__name__}) knows"
        )
