"""Searches the highest rate that a service sustains, by runs at rising and then at bisected rates.

What "sustains" means is the caller's; it knows neither HTTP nor figures.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

R = TypeVar("R")

GROWTH = 2.0
PRECISION = 1.08
"""The search ends once the lowest rate that failed is at most this many times the highest that held."""


@dataclass(frozen=True)
class Probe(Generic[R]):
    """A run at one rate, and whether the service sustained it."""

    rate: float
    result: R
    holds: bool


@dataclass(frozen=True)
class Found(Generic[R]):
    """All probes in their order, and how close to each other the rates were to come."""

    probes: tuple[Probe[R], ...]
    precision: float = PRECISION

    @property
    def best(self) -> Probe[R] | None:
        """That of the highest rate that held, which is below every rate that failed; None if none held."""
        held = [one for one in self.probes if one.holds]
        return max(held, key=lambda one: one.rate, default=None)

    @property
    def lowest_failed(self) -> Probe[R] | None:
        """That of the lowest rate that failed; None if all held: the service may sustain more than these."""
        failed = [one for one in self.probes if not one.holds]
        return min(failed, key=lambda one: one.rate, default=None)

    @property
    def is_narrow(self) -> bool:
        """Whether the highest rate that held and the lowest that failed are close to each other."""
        best, failed = self.best, self.lowest_failed
        return best is not None and failed is not None and failed.rate <= self.precision * best.rate


def search(
    run: Callable[[float], R],
    holds: Callable[[R], bool],
    *,
    first_rate: float,
    max_probes: int,
    precision: float = PRECISION,
) -> Found[R]:
    """Double the rate until it fails, or halve it until it holds, then bisect by the geometric mean."""
    found, rate = Found[R]((), precision), first_rate
    while len(found.probes) < max_probes and not found.is_narrow:
        result = run(rate)
        found = replace(found, probes=(*found.probes, Probe(rate, result, holds(result))))
        low, high = found.best, found.lowest_failed
        if high is None:
            rate *= GROWTH
        elif low is None:
            rate /= GROWTH
        else:
            rate = math.sqrt(low.rate * high.rate)
    return found
