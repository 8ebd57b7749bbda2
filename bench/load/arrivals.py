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


def ramp(rate: float, seconds: float, rng: random.Random) -> Instants:
    """A Poisson process whose rate rises in a straight line from 0 to twice `rate`, its mean.

    rate·t²/seconds arrivals are expected until t, so uniform counts are placed at the times that solve that.
    """
    counts = (rng.uniform(0, rate * seconds) for _ in range(_number(rate, seconds)))
    return sorted(math.sqrt(count * seconds / rate) for count in counts)


def _number(rate: float, seconds: float) -> int:
    return max(1 if seconds else 0, round(rate * seconds))


PATTERNS: Mapping[str, Callable[[float, float, random.Random], Instants]] = {
    "poisson": poisson,
    "constant": constant,
    "ramp": ramp,
}
"""Those that need nothing but a rate; `bursts_of` makes others."""
