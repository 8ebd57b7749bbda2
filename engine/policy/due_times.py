"""Due times: when a generation should be done, whether it can meet its deadline, and with how many rows.

Owns the seconds of steps and what follows from them. It does not know the order of lanes, nor turns.
docs/adr/0008-due-times-and-turns.md has the reasons, and the simulations behind the numbers.
"""

import math
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from engine.policy.candidate import BatchKey, Candidate

OVERTAKING_STEPS = 12
"""A generation with 1/e of the steps of another may arrive up to this many full steps later and go first."""
QUANTUM_STEPS = 8
"""A key or an account may be ahead of another by this many full steps."""
SMOOTHING = 0.2
"""The share of a new measurement in the smoothed one."""

K = TypeVar("K", bound=Hashable)


class DueTimes:
    """The due times of one policy; generations of a key without known step seconds are due on arrival."""

    def __init__(
        self,
        max_rows: Callable[[BatchKey], int],
        bulk_patience_seconds: float,
        step_seconds: Callable[[BatchKey, int], float | None] | None,
        bucket_rows: Callable[[BatchKey, int], int],
    ) -> None:
        self._max_rows = max_rows
        self.bucket_rows = bucket_rows
        self._bulk_patience_seconds = bulk_patience_seconds
        self._pace = Pace(step_seconds)
        self._full_steps: dict[BatchKey, float] = {}  # seconds

    def urgency(self, member: Candidate, now: float) -> tuple[bool, float, float]:
        """The sort key of a generation: whether it will miss its deadline, its due time, its arrival.

        The time from arrival until it is due grows with the logarithm of its steps: of two that wait, the
        shorter goes first unless it arrived that much later. An earlier deadline is the due time itself.
        """
        submitted_at, deadline_at = member.submitted_at, member.deadline_at
        due_at = submitted_at + self._seconds_until_due(member)
        if deadline_at is None:
            return False, due_at, submitted_at
        fastest_seconds = self.step_seconds(member.key, member.num_rows)
        is_lost = now + member.num_full_steps_left * fastest_seconds > deadline_at
        return is_lost, min(due_at, deadline_at), submitted_at

    def max_rows_in_time(self, member: Candidate, now: float) -> int:
        """The most rows of a step batch with which `member` meets its deadline; 0 if it cannot any more."""
        cap = self._max_rows(member.key)
        if member.deadline_at is None:
            return cap
        seconds_left = member.deadline_at - now
        for num_rows in range(max(cap, member.num_rows), member.num_rows - 1, -1):
            if member.num_full_steps_left * self.step_seconds(member.key, num_rows) <= seconds_left:
                return num_rows
        return 0

    def step_seconds(self, key: BatchKey, num_rows: int) -> float:
        """Predicted seconds of a full step of `num_rows` rows at their bucket; see `Pace.seconds`."""
        return self._pace.seconds(key, self.bucket_rows(key, num_rows))

    def knows(self, key: BatchKey, num_rows: int) -> bool:
        """Whether those seconds were profiled or seen at this very bucket."""
        return self._pace.knows(key, self.bucket_rows(key, num_rows))

    def quantum_seconds(self, keys: Iterable[BatchKey]) -> float:
        """The lead that turns allow among `keys`: `QUANTUM_STEPS` full steps of the slowest of them."""
        return QUANTUM_STEPS * max(self._full_step_seconds(key) for key in keys)

    def see(self, key: BatchKey, num_rows: int, seconds: float, *, is_full: bool) -> None:
        """Record that a step of `num_rows` rows, padded to its bucket, took `seconds`; see `Pace.see`."""
        if self._pace.see(key, self.bucket_rows(key, num_rows), seconds, is_full=is_full):
            self._full_steps.clear()

    def forget_caps(self) -> None:
        """Record that `max_rows` gives other caps from now on."""
        self._full_steps.clear()

    def _seconds_until_due(self, member: Candidate) -> float:
        if member.lane != "interactive":
            return self._bulk_patience_seconds
        return OVERTAKING_STEPS * self._full_step_seconds(member.key) * math.log(member.num_steps)

    def _full_step_seconds(self, key: BatchKey) -> float:
        seconds = self._full_steps.get(key)
        if seconds is None:
            seconds = self._full_steps[key] = self.step_seconds(key, self._max_rows(key))
        return seconds


class Pace(Generic[K]):
    """Predicts step seconds from a profile or, where `profiled` returns None, from steps measured here."""

    def __init__(self, profiled: Callable[[K, int], float | None] | None = None) -> None:
        self._profiled = profiled
        self._seen: dict[K, dict[int, float]] = {}
        self._predicted: dict[tuple[K, int], float] = {}

    def seconds(self, key: K, num_rows: int) -> float:
        """Seconds of one step of `key` at `num_rows` rows; 0.0 while nothing is known about the key.

        For a number of rows that was neither profiled nor seen it is the nearest one that was seen: a guess
        that never makes a smaller step batch look faster than it was seen to be.
        """
        known = self._predicted.get((key, num_rows))
        if known is None:
            known = self._predicted[key, num_rows] = self._predict(key, num_rows)
        return known

    def knows(self, key: K, num_rows: int) -> bool:
        """Whether the seconds at this number of rows were profiled or seen."""
        is_profiled = self._profiled is not None and self._profiled(key, num_rows) is not None
        return is_profiled or num_rows in self._seen.get(key, ())

    def see(self, key: K, num_rows: int, seconds: float, *, is_full: bool = True) -> bool:
        """Record that a step of `key` at `num_rows` rows took `seconds`; whether predictions change.

        A step with cached rows would have taken longer without them, so it can only raise a prediction.
        """
        if self._profiled is not None and self._profiled(key, num_rows) is not None:
            return False
        seen = self._seen.setdefault(key, {})
        known = seen.get(num_rows, seconds)
        if not is_full and seconds < known:
            return False
        seen[num_rows] = known + SMOOTHING * (seconds - known)
        self._predicted.clear()
        return True

    def _predict(self, key: K, num_rows: int) -> float:
        profiled = self._profiled(key, num_rows) if self._profiled is not None else None
        if profiled is not None:
            return profiled
        seen = self._seen.get(key)
        if not seen:
            return 0.0
        return seen[min(seen, key=lambda rows: (abs(rows - num_rows), rows))]
