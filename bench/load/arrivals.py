"""Instants of arrivals, in seconds from the start: Poisson, constant, in bursts, or at a rising rate.

All are drawn from a seed before a run, so that no answer can delay a later request. It knows no request.
"""

import math
import random
from collections.abc import Callable, Mapping

Instants = list[float]


def poisson(rate: float, seconds: float, rng: random.Random) -> Instants:
    """A Poisson process with exactly the number of arrivals that `rate` gives in `seconds`.

    Given their number, the arrivals of a Poisson process are independent and uniform (Kingman, Poisson
    Processes, 1993, section 2.4). A random number would miss the rate by a tenth in a hundred arrivals.
    """
    return sorted(rng.uniform(0, seconds) for _ in range(_number(rate, seconds)))


def constant(rate: float, seconds: float, rng: random.Random) -> Instants:  # noqa: ARG001 - as the others
    """One arrival every 1 ÷ `rate` seconds."""
    return [(index + 0.5) / rate for index in range(_number(rate, seconds))]


def bursts_of(size: int) -> Callable[[float, float, random.Random], Instants]:
    """Arrivals in groups of `size` at the same instant; the groups are a Poisson process."""

    def bursts(rate: float, seconds: float, rng: random.Random) -> Instants:
        starts = poisson(rate / size, seconds, rng)
        return [start for start in starts for _ in range(size)]

    return bursts


def ramp_from(first_rate: float) -> Callable[[float, float, random.Random], Instants]:
    """A Poisson process whose rate goes from `first_rate` to `rate` in a straight line."""

    def ramp(rate: float, seconds: float, rng: random.Random) -> Instants:
        rise = (rate - first_rate) / seconds
        number = _number((first_rate + rate) / 2, seconds)
        expected = (first_rate + rate) / 2 * seconds
        return sorted(_when(rng.uniform(0, expected), first_rate, rise) for _ in range(number))

    return ramp


def _when(count: float, first_rate: float, rise: float) -> float:
    """The time at which `count` arrivals are expected: first_rate·t + rise·t²/2 = count, solved for t."""
    if not rise:
        return count / first_rate
    return 2 * count / (first_rate + math.sqrt(first_rate**2 + 2 * rise * count))


def _number(rate: float, seconds: float) -> int:
    return max(1, round(rate * seconds))


PATTERNS: Mapping[str, Callable[[float, float, random.Random], Instants]] = {
    "poisson": poisson,
    "constant": constant,
}
"""Those that need nothing but a rate; the others are made by `bursts_of` and `ramp_from`."""
