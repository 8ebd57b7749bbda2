"""Corrects a pipeline that diffusers has just read: the dtype of its VAE and the limits of its texts.

Owns the checks that hold for any pipeline class: whether the scheduler is of the pipeline's kind, whether the
autoencoder needs full precision, how many tokens a text encoder has positions for, and which tokens it has
embeddings for. It does not know requests or devices.
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
"""Pipelines whose VAE draws banded colours in bf16; diffusers would leave it in that dtype."""


def make_ready(pipeline: Any) -> Any:
    """Correct the pipeline and return it; call this before its components are moved or compiled.

    Raises `LoadError` for a scheduler that would draw noise, and for a tokenizer with no room for text.
    """
    _check_scheduler(pipeline)
    _upcast(pipeline)
    # Some pipelines copy this limit from their tokenizer when they are created; others have their own number.
    limit = getattr(pipeline, "tokenizer_max_length", None)
    tokenizer = getattr(pipeline, "tokenizer", None)
    is_copied = limit is not None and limit == getattr(tokenizer, "model_max_length", None)
    for tokenizer, encoder in _text_encoders(pipeline):
        _limit_to_positions(tokenizer, encoder)
        _limit_to_vocabulary(tokenizer, encoder)
    if is_copied:
        pipeline.tokenizer_max_length = pipeline.tokenizer.model_max_length
    return pipeline


def _check_scheduler(pipeline: Any) -> None:
    """Raise `LoadError` for a scheduler of another kind than the pipeline's class declares.

    A pipeline for flow matching runs with any scheduler, and draws noise with one of another kind. Other
    pipelines fail with a scheduler for flow matching, which lacks methods that they call.
    """
    scheduler, class_name = pipeline.scheduler, type(pipeline).__name__
    name = type(scheduler).__name__
    parameter = inspect.signature(type(pipeline).__init__).parameters.get("scheduler")
    declared = set(re.findall(r"\w+Schedulers?\b", str(parameter)))
    if declared and declared <= set(CLASSES["flow"]) and kind_of(scheduler) not in ("flow", "unknown"):
        raise LoadError(
            f"its scheduler is a {name}, which is not for flow matching, and a {class_name} needs that:"
            f" use the one that the model was published with, a {' or a '.join(sorted(declared))}"
        )
    if scheduler.config.get("thresholding") and getattr(pipeline, "vae", None) is not None:
        raise LoadError(
            f"thresholding: the {name} clips pixels, and a {class_name} draws latents, which have no bounds:"
            " set it to false in scheduler_config.json"
        )


def _upcast(pipeline: Any) -> None:
    """Use full precision for a VAE with `force_upcast`: in fp16 its activations overflow to black images.

    diffusers' `StableDiffusionXLPipeline` does this in its own call; such a VAE overflows in other pipelines
    too.
    """
    vae = getattr(pipeline, "vae", None)
    dtypes = [torch.float16]
    if type(pipeline).__name__ in UPCAST_IN_BFLOAT16:
        dtypes.append(torch.bfloat16)
    if vae is not None and getattr(vae.config, "force_upcast", False) and vae.dtype in dtypes:
        vae.to(torch.float32)


def _text_encoders(pipeline: Any) -> list[tuple[Any, Any]]:
    """Return pairs of tokenizer and text encoder; a processor in place of a tokenizer contains one."""
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
    """Limit a tokenizer that reads more tokens than the encoder has positions for."""
    num_own = tokenizer.num_special_tokens_to_add()
    if tokenizer.model_max_length <= num_own:
        raise LoadError(
            f"its tokenizer ({type(tokenizer).__name__}) has model_max_length {tokenizer.model_max_length}"
            f" and adds {num_own} tokens itself: use the one that the model was published with"
        )
    num_positions = getattr(encoder.config, "max_position_embeddings", None)
    if num_positions is not None and tokenizer.model_max_length > num_positions:
        tokenizer.model_max_length = num_positions


def _limit_to_vocabulary(tokenizer: Any, encoder: Any) -> None:
    """Make the encoder refuse tokens that it has no embedding for, in any call.

    On a GPU such a token reads beyond the embedding table, which ends the process. The hook is added only if
    the tokenizer has more tokens than the encoder.
    """
    if not _knows_more_tokens(tokenizer, encoder):
        return

    def check(_: Module, arguments: tuple[Tensor, ...]) -> None:
        _check_tokens(arguments[0], tokenizer, encoder, "prompt")

    encoder.get_input_embeddings().register_forward_pre_hook(check)


class Vocabularies:
    """The tokenizers of a pipeline that have more tokens than their text encoders."""

    def __init__(self, pipeline: Any) -> None:
        self._pairs = [pair for pair in _text_encoders(pipeline) if _knows_more_tokens(*pair)]

    def check(self, field: str, text: str) -> None:
        """Raise `PromptInvalid`, which names `field`, if `text` has a token without an embedding."""
        for tokenizer, encoder in self._pairs:
            tokens = tokenizer(text, truncation=True, return_tensors="pt").input_ids
            _check_tokens(tokens, tokenizer, encoder, field)


def _knows_more_tokens(tokenizer: Any, encoder: Any) -> bool:
    try:
        num_embeddings: int = encoder.get_input_embeddings().num_embeddings
    except NotImplementedError:  # raised by Kandinsky's `MultilingualCLIP`
        return False
    return len(tokenizer) > num_embeddings


def _check_tokens(tokens: Tensor, tokenizer: Any, encoder: Any, field: str) -> None:
    num_embeddings = encoder.get_input_embeddings().num_embeddings
    unknown = tokens[tokens >= num_embeddings]
    if unknown.numel():
        token = tokenizer.convert_ids_to_tokens(int(unknown[0]))
        raise PromptInvalid(
            f"{field}: its token {token!r} is not among the {num_embeddings} tokens that the text encoder"
            f" ({type(encoder).__name__}) knows"
        )
