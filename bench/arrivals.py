"""The load of the simulator: open-loop Poisson arrivals over a fixed mix of work.

Owns the mix that every benchmark of the engine shares, the seconds of a step as a function of its rows, and
the cost of a request alone. It does not know how requests are served, nor in which order.
"""

import bisect
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from engine.policy.buckets import MULTIPLES_OF_FOUR

STEP_COUNTS: Mapping[int, float] = {4: 0.2, 12: 0.2, 20: 0.3, 30: 0.2, 50: 0.1}
GUIDANCE_SCALES: Mapping[float, float] = {1.0: 0.5, 4.0: 0.5}
SIZES: Mapping[int, float] = {16: 1.0}  # side of a square latent -> its share
IN_TIME_SLOWDOWN = 3.0
ANCHOR_STEP_SECONDS: Mapping[int, float] = {1: 0.0134, 2: 0.0210, 4: 0.0263, 8: 0.0380}


Value = TypeVar("Value", int, float)


@dataclass(frozen=True)
class StepTable:
    """Seconds of one step at so many rows: measured points, straight lines between and past them."""

    seconds: Mapping[int, float]

    @cached_property
    def _rows(self) -> list[int]:
        return sorted(self.seconds)

    def at(self, num_rows: int) -> float:
        """Seconds of a step of exactly `num_rows` rows."""
        if num_rows in self.seconds:
            return self.seconds[num_rows]
        rows = self._rows
        if len(rows) == 1:
            return self.seconds[rows[0]] * max(1.0, num_rows / rows[0])
        upper = min(max(bisect.bisect(rows, num_rows), 1), len(rows) - 1)
        low, high = rows[upper - 1], rows[upper]
        slope = (self.seconds[high] - self.seconds[low]) / (high - low)
        return max(self.seconds[low] + slope * (num_rows - low), 1e-9)


@dataclass(frozen=True)
class Work:
    """The costs of the device: a step table for each latent side, the row cap, the seconds of an image.

    `bucket` gives the row count that the engine pads a step batch to. Solo times are those of our engine, as
    in the benchmark of real strategies; with `is_solo_padded` off, those of the bare model, without padding.
    """

    tables: Mapping[int, StepTable] = field(default_factory=lambda: {16: StepTable(ANCHOR_STEP_SECONDS)})
    max_rows: int = 8
    image_seconds: float = 0.0  # encoding the prompt and decoding the latents of one image
    step_counts: Mapping[int, float] = field(default_factory=lambda: STEP_COUNTS)
    guidance_scales: Mapping[float, float] = field(default_factory=lambda: GUIDANCE_SCALES)
    sizes: Mapping[int, float] = field(default_factory=lambda: SIZES)
    num_accounts: int = 1
    bucket: Callable[[int], int] = MULTIPLES_OF_FOUR.rows
    is_solo_padded: bool = True

    def step_seconds(self, side: int, num_rows: int) -> float:
        """Seconds of a step at exactly `num_rows` rows, as the bare model runs it."""
        return self.tables[side].at(num_rows)

    def bare_seconds(self, num_steps: int, num_rows: int, side: int) -> float:
        """Seconds of one request alone on the bare model."""
        return num_steps * self.step_seconds(side, num_rows) + self.image_seconds

    def solo_seconds(self, num_steps: int, num_rows: int, side: int) -> float:
        """Seconds of one request alone: the unit of slowdown."""
        return self.bare_seconds(num_steps, self.bucket(num_rows) if self.is_solo_padded else num_rows, side)

    def row_seconds(self, side: int) -> float:
        """Seconds of one row of a step at the best batch within the cap."""
        return min(self.step_seconds(side, rows) / rows for rows in range(1, self.max_rows + 1))

    def capacity(self) -> float:
        """Requests a second of a device that runs only full batches of this mix."""
        steps = sum(count * share for count, share in self.step_counts.items())
        rows = sum((2 if scale > 1 else 1) * share for scale, share in self.guidance_scales.items())
        seconds = sum(self.row_seconds(side) * share for side, share in self.sizes.items())
        return 1 / (steps * rows * seconds + self.image_seconds)


@dataclass(eq=False, slots=True)
class Arrival:
    """One request of the trace; the strategy that serves it writes `ended_at`."""

    arrived_at: float
    num_steps: int
    num_rows: int
    side: int
    account: str
    solo_seconds: float
    ended_at: float = 0.0

    @property
    def latency_seconds(self) -> float:
        """Seconds from its arrival to its image."""
        return self.ended_at - self.arrived_at

    @property
    def slowdown(self) -> float:
        """Latency divided by the solo time; infinite if the request was dropped."""
        return self.latency_seconds / self.solo_seconds


def arrivals(work: Work, load: float, num_requests: int, seed: int) -> list[Arrival]:
    """Poisson arrivals at `load` times the capacity; one seed gives every strategy the same trace."""
    random_number = random.Random(seed)
    rate, now = load * work.capacity(), 0.0
    trace = []
    for _ in range(num_requests):
        now += random_number.expovariate(rate)
        num_steps = _draw(random_number, work.step_counts)
        num_rows = 2 if _draw(random_number, work.guidance_scales) > 1 else 1
        side = _draw(random_number, work.sizes)
        account = f"account-{random_number.randrange(work.num_accounts)}"
        solo_seconds = work.solo_seconds(num_steps, num_rows, side)
        trace.append(Arrival(now, num_steps, num_rows, side, account, solo_seconds))
    return trace


def _draw(random_number: random.Random, shares: Mapping[Value, float]) -> Value:
    return random_number.choices(list(shares), list(shares.values()))[0]
