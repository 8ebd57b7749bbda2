"""Finds out whether prompts of different lengths share the forward passes of a small pipeline.

Two requests differ only in their prompts. If the calls of their first step cannot share passes, it searches
for a padding as a worker's self-test does, and compares whole images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy
import torch

from engine.exchange import Exchange
from engine.pipelines.parked_call import PER_ROW_NUMBERS
from engine.pipelines.steady_stack import on_steady_stack
from engine.pipelines.text_padding import TextPadding
from engine.self_test.padding_finder import find_text_padding, first_step
from engine.self_test.time_budget import TimeBudget
from engine.self_test.trial_images import MAX_DIFFERENCE
from tests.pipelines.builds import built
from tests.pipelines.drawn import image_of
from tests.pipelines.requests import arguments

SHORT, LONG = 0, 3  # the numbers of requests whose prompts have different lengths


@dataclass(frozen=True)
class Texts:
    """Whether two lengths share passes, how they are padded for that, and which masks the denoiser takes."""

    are_together: bool = False
    padding: TextPadding | None = None
    masks: frozenset[str] = frozenset()

    def __str__(self) -> str:
        if self.padding is not None:
            return f"padded{_named(self.masks)}"
        return "together" if self.are_together else f"apart{_named(self.masks)}"


@cache
@on_steady_stack
@torch.inference_mode()
def texts_of(name: str) -> Texts | None:
    """The result for texts of different lengths; None for a class without a prompt."""
    if "prompt" not in arguments(name, SHORT):
        return None
    exchange = Exchange(built(name))
    begin = [partial(_begun, exchange, name, number) for number in (SHORT, LONG)]
    steps = [first_step(exchange, one) for one in begin]
    # Encoders with unusual names take no timestep.
    passes = [[call for call in step if PER_ROW_NUMBERS & call.arguments().keys()] for step in steps]
    given = [call.arguments() for call in passes[0]]
    masks = frozenset(name for one in given for name in _masks(one))
    if [call.signature for call in passes[0]] == [call.signature for call in passes[1]]:
        return Texts(are_together=True, masks=masks)
    bare = [draw(exchange, name, number) for number in (SHORT, LONG)]

    def is_unchanged() -> bool:
        drawn = [draw(exchange, name, number) for number in (SHORT, LONG)]
        apart = [numpy.abs(one - other).max() * 255 for one, other in zip(bare, drawn, strict=True)]
        return bool(max(apart) <= MAX_DIFFERENCE)

    padding = find_text_padding(exchange, begin, is_unchanged, TimeBudget())
    if padding is not None:
        of_text = [place.path for place in padding.places if "mask" in place.fill]
        masks = frozenset(path.rpartition("/")[2] for path in of_text)
    return Texts(padding=padding, masks=masks)


def draw(exchange: Exchange, name: str, number: int) -> numpy.ndarray:
    """The image of request `SHORT` with the prompt of request `number`."""
    call = _begun(exchange, name, number)
    while call.parked is not None:
        exchange.run([call])
    return image_of(call)


def _begun(exchange: Exchange, name: str, number: int) -> Any:
    return exchange.begin(**{**arguments(name, SHORT), "prompt": arguments(name, number)["prompt"]})


def _masks(given: Mapping[str, Any]) -> list[str]:
    return [name for name, value in given.items() if "mask" in name and isinstance(value, torch.Tensor)]


def _named(masks: frozenset[str]) -> str:
    return f" (`{'`, `'.join(sorted(masks))}`)" if masks else ""
