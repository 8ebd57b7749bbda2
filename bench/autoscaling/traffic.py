"""A day of traffic: jobs that arrive at a rate with a daily wave, noise and a burst.

One seed gives every way of scaling the same jobs. It does not know how jobs are served.
"""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from catalogue.lanes import Lane

NOISE_SECONDS = 60.0
"""How long a deviation of the rate lasts."""


@dataclass(frozen=True)
class Burst:
    """For `seconds` from `begun_at` on, the rate is multiplied."""

    begun_at: float
    seconds: float
    factor: float


@dataclass(frozen=True)
class Traffic:
    """Rates in jobs a second, instants in seconds of the day.

    The rate is greatest in the middle of the day and `night` times that at its ends; between them it follows
    a cosine. Each minute it deviates by a factor whose logarithm has the standard deviation `noise`.
    """

    peak: float
    day_seconds: float = 86_400.0
    night: float = 0.1
    noise: float = 0.1
    burst: Burst | None = None
    num_images: Mapping[int, float] = field(default_factory=lambda: {1: 0.4, 2: 0.2, 4: 0.4})

    @property
    def mean_images(self) -> float:
        """Images of a job, on average."""
        return sum(num * share for num, share in self.num_images.items())

    def rate(self, at: float) -> float:
        """Jobs a second at an instant, without noise."""
        wave = (1 - math.cos(2 * math.pi * at / self.day_seconds)) / 2
        rate = self.peak * (self.night + (1 - self.night) * wave)
        one = self.burst
        return rate * one.factor if one and one.begun_at <= at < one.begun_at + one.seconds else rate


@dataclass(frozen=True)
class Arrival:
    """A job of so many images, and when it arrives."""

    at: float
    num_images: int
    lane: Lane = "interactive"


def arrivals(traffic: Traffic, seed: int) -> Iterator[Arrival]:
    """The jobs of one day, a Poisson process at the rate of each minute."""
    chance = random.Random(seed)
    counts, shares = list(traffic.num_images), list(traffic.num_images.values())
    for minute in range(math.ceil(traffic.day_seconds / NOISE_SECONDS)):
        begun_at = minute * NOISE_SECONDS
        # Of mean 1: otherwise noise would add work.
        factor = math.exp(chance.gauss(-(traffic.noise**2) / 2, traffic.noise))
        rate = factor * traffic.rate(begun_at + NOISE_SECONDS / 2)
        at = begun_at + chance.expovariate(rate) if rate else math.inf
        while at < min(begun_at + NOISE_SECONDS, traffic.day_seconds):
            yield Arrival(at, chance.choices(counts, shares)[0])
            at += chance.expovariate(rate)
