"""Searches the highest rate that a service sustains, by runs at rising and then at bisected rates.

What "sustains" means is the caller's; it knows neither HTTP nor figures.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
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
    """All probes in their order."""

    probes: tuple[Probe[R], ...]

    @property
    def best(self) -> Probe[R] | None:
        """That of the highest rate that held, which is below every rate that failed; None if none held."""
        held = [one for one in self.probes if one.holds]
        return max(held, key=lambda one: one.rate, default=None)

    @property
    def is_bounded(self) -> bool:
        """Whether a rate failed; else the service may sustain more than was tried."""
        return any(not one.holds for one in self.probes)


def search(
    run: Callable[[float], R],
    holds: Callable[[R], bool],
    *,
    first_rate: float,
    max_probes: int,
    precision: float = PRECISION,
) -> Found[R]:
    """Double the rate until it fails, or halve it until it holds, then bisect by the geometric mean."""
    probes: list[Probe[R]] = []
    rate = first_rate
    while len(probes) < max_probes:
        result = run(rate)
        probes.append(Probe(rate, result, holds(result)))
        low = max((one.rate for one in probes if one.holds), default=None)
        high = min((one.rate for one in probes if not one.holds), default=None)
        if low is not None and high is not None and high <= precision * low:
            break
        if high is None:
            rate *= GROWTH
        elif low is None:
            rate /= GROWTH
        else:
            rate = math.sqrt(low * high)
    return Found(tuple(probes))
