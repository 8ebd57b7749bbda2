"""Draws requests of one pipeline in random batches through the exchange, and alone, and compares the images.

A seeded loop lets requests join at random ticks, cancels some parked ones, and at each tick makes one forward
pass for a random group of calls of equal signature. It does not know the pipeline's class.
"""

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy
import torch

from engine.exchange import Exchange
from engine.pipelines.components import is_denoiser
from engine.pipelines.steady_stack import on_steady_stack
from tests.pipelines.builds import built
from tests.pipelines.drawn import image_of, pixels
from tests.pipelines.requests import arguments, seed
from tests.pipelines.texts import Texts, texts_of

MAX_ROWS = 8
MOST, MEAN = 2.0, 0.2
"""Bounds of the largest and of the mean difference of an image, in steps of 1/255."""


@dataclass(frozen=True)
class Seen:
    """The results of some requests.

    `most` and `mean` are differences in steps of 1/255. `calls_a_pass` is the mean number of calls in a pass
    of the denoiser. `texts` is the result for texts of different lengths.
    """

    most: float
    mean: float
    calls_a_pass: float
    texts: Texts | None = None

    @property
    def is_equal(self) -> bool:
        return self.most <= MOST and self.mean <= MEAN

    @property
    def is_batched(self) -> bool:
        return self.is_equal and self.calls_a_pass > 1.0


@torch.inference_mode()
def draw_untouched(name: str, number: int) -> numpy.ndarray:
    """The image of request `number` by diffusers' own call, with the same seed for torch's own generator."""
    pipeline = built(name)
    torch.manual_seed(seed(number))
    return pixels(pipeline(**arguments(name, number)))


@on_steady_stack
@torch.inference_mode()
def draw_in_batches(name: str, numbers: range, chance: int) -> Seen:
    """Draw requests `numbers` in batches that the seed `chance` decides, and compare with the pipeline."""
    untouched = {number: _kept_untouched(name, number) for number in numbers}
    members = BatchMembers(name, numbers, random.Random(chance))
    members.run()
    differences = differences_of(untouched, members.images)
    return Seen(*differences, members.calls_a_pass, texts_of(name))


@on_steady_stack
@torch.inference_mode()
def draw_one_at_a_time(name: str, numbers: range) -> Seen:
    """Draw requests `numbers` through the exchange, one after another."""
    untouched = {number: _kept_untouched(name, number) for number in numbers}
    exchange, images = Exchange(built(name)), {}
    for number in numbers:
        call = exchange.begin(**arguments(name, number))
        while call.parked is not None:
            exchange.run([call])
        images[number] = image_of(call)
    return Seen(*differences_of(untouched, images), 1.0)


class BatchMembers:
    """Requests of the pipeline `name` that share forward passes as `chance` decides."""

    def __init__(self, name: str, numbers: range, chance: random.Random) -> None:
        self.images: dict[int, numpy.ndarray] = {}
        self._name = name
        self._waiting = list(numbers)
        self._chance = chance
        self._exchange = Exchange(built(name))
        texts = texts_of(name)
        self._exchange.text_padding = None if texts is None else texts.padding
        self._calls: dict[int, Any] = {}
        self._doomed: set[int] = set()
        self._denoised: list[int] = []

    @property
    def calls_a_pass(self) -> float:
        return sum(self._denoised) / max(1, len(self._denoised))

    def run(self) -> None:
        """Run every request to its end; one in four has a twin that is canceled halfway."""
        while self._waiting or self._calls:
            if self._waiting and (not self._calls or self._chance.random() < 0.6):
                self._join()
            self._cancel_some()
            if self._calls:
                self._pass()

    def _join(self) -> None:
        number = self._waiting.pop(0)
        self._calls[number] = self._begin(number)
        if self._chance.random() < 0.25:
            twin = -1 - number
            self._calls[twin] = self._begin(twin)
            self._doomed.add(twin)
        self._take_ended()

    def _begin(self, number: int) -> Any:
        return self._exchange.begin(**arguments(self._name, number))

    def _cancel_some(self) -> None:
        for number in sorted(self._doomed):
            if self._chance.random() < 0.2:
                self._calls.pop(number).end()
                self._doomed.discard(number)

    def _pass(self) -> None:
        groups: dict[Any, list[Any]] = {}
        for number in sorted(self._calls):
            groups.setdefault(self._calls[number].parked.signature, []).append(self._calls[number])
        weights = [len(group) ** 2 for group in groups.values()]
        [group] = self._chance.choices(list(groups.values()), weights)
        self._chance.shuffle(group)
        chosen = [group[0]]
        for call in group[1:]:
            if sum(one.parked.num_rows for one in (*chosen, call)) <= MAX_ROWS:
                chosen.append(call)
        if is_denoiser(chosen[0].parked.name):
            self._denoised.append(len(chosen))
        ill = self._make_pass(chosen)
        assert not ill, f"{self._name}: {len(ill)} calls are not finite"
        self._take_ended()

    def _make_pass(self, chosen: list[Any]) -> list[Any]:
        return self._exchange.run(chosen)

    def _take_ended(self) -> None:
        for number in [number for number, call in self._calls.items() if call.parked is None]:
            call = self._calls.pop(number)
            self._doomed.discard(number)
            image = image_of(call)
            if number >= 0:
                self.images[number] = image


@cache
def _kept_untouched(name: str, number: int) -> numpy.ndarray:
    return draw_untouched(name, number)


def differences_of(
    untouched: dict[int, numpy.ndarray], images: dict[int, numpy.ndarray]
) -> tuple[float, float]:
    """The largest and the mean difference of an image, in steps of 1/255."""
    apart = [numpy.abs(untouched[number] - images[number]) * 255 for number in untouched]
    return max(float(one.max()) for one in apart), max(float(one.mean()) for one in apart)
