"""Due times: when a generation should be done, whether it still can be, and how large its step batch may be.

Owns the pace of steps and what follows from it. It does not know lanes' precedence, turns or who runs.
docs/adr/0008-due-times-and-turns.md has the reasons and the simulations behind the numbers.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from engine.candidate import SMALLEST_BUCKET, BatchKey, Candidate, bucket_rows
from engine.pace import Pace

DUE_FACTOR = 3.0  # in time is within this many times the seconds that it would take alone
PATIENCE_ROWS = 576  # what is late is due when so many rows of steps, of full batches, could have run
QUANTUM_STEPS = 8  # by so many full steps may a key or an account be ahead of another


class _Outlook(NamedTuple):
    """What the pace means for the generations of one key and row count."""

    in_time_step_seconds: float  # for each of its steps: so long it may take and be in time
    fastest_step_seconds: float
    patience_seconds: float


class DueTimes:
    """The due times of one policy; while no pace is known of a key, its generations are due on arrival."""

    def __init__(
        self,
        max_rows: Callable[[BatchKey], int],
        bulk_patience_seconds: float,
        step_seconds: Callable[[BatchKey, int], float | None] | None,
    ) -> None:
        self._max_rows = max_rows
        self._bulk_patience_seconds = bulk_patience_seconds
        self._pace = Pace(step_seconds)
        self._outlooks: dict[tuple[BatchKey, int], _Outlook] = {}  # by key and rows of a member

    def urgency(self, member: Candidate, now: float) -> tuple[bool, float, float]:
        """What to sort by: whether its deadline is lost, its due time, its arrival.

        Due is the target while that can be met. What cannot meet it any more is due `PATIENCE_ROWS` after
        its arrival: behind nearly all that can be in time, but before whatever comes so much later.
        """
        outlook = self._outlook(member)
        submitted_at, deadline_at = member.submitted_at, member.deadline_at
        soonest_at = now + member.num_steps_left * outlook.fastest_step_seconds
        due_at = submitted_at + outlook.patience_seconds
        if member.lane != "interactive":
            due_at = submitted_at + self._bulk_patience_seconds
        elif soonest_at <= (target_at := submitted_at + member.num_steps * outlook.in_time_step_seconds):
            due_at = target_at
        if deadline_at is None:
            return False, due_at, submitted_at
        return soonest_at > deadline_at, min(due_at, deadline_at), submitted_at

    def max_rows_in_time(self, leader: Candidate, now: float) -> int:
        """The most rows with which `leader` is in time: the cap where it cannot be, or need not hurry."""
        cap = self._max_rows(leader.key)
        target_at = math.inf if leader.deadline_at is None else leader.deadline_at
        if leader.lane == "interactive":
            seconds_in_time = leader.num_steps * self._outlook(leader).in_time_step_seconds
            target_at = min(target_at, leader.submitted_at + seconds_in_time)
        for num_rows in range(cap, leader.num_rows - 1, -SMALLEST_BUCKET):
            seconds = self._pace.seconds(leader.key, bucket_rows(num_rows))
            if now + leader.num_steps_left * seconds <= target_at:
                return num_rows
        return cap

    def quantum_seconds(self, keys: Iterable[BatchKey]) -> float:
        """The lead that turns allow, where `keys` are about: full steps of the slowest of them."""
        return QUANTUM_STEPS * max(self._full_step_seconds(key) for key in keys)

    def see(self, key: BatchKey, num_rows: int, seconds: float) -> None:
        """Take note that a step of `num_rows` rows, in its bucket, took `seconds`."""
        if self._pace.see(key, bucket_rows(num_rows), seconds):
            self._outlooks.clear()

    def forget_caps(self) -> None:
        """Take note that `max_rows` gives other caps from now on."""
        self._outlooks.clear()

    def _outlook(self, member: Candidate) -> _Outlook:
        key, num_rows = member.key, member.num_rows
        outlook = self._outlooks.get((key, num_rows))
        if outlook is None:
            outlook = self._outlooks[key, num_rows] = _Outlook(
                in_time_step_seconds=DUE_FACTOR * self._pace.seconds(key, num_rows),
                fastest_step_seconds=self._pace.seconds(key, bucket_rows(num_rows)),
                patience_seconds=PATIENCE_ROWS
                * self._full_step_seconds(key)
                / bucket_rows(self._max_rows(key)),
            )
        return outlook

    def _full_step_seconds(self, key: BatchKey) -> float:
        return self._pace.seconds(key, bucket_rows(self._max_rows(key)))
