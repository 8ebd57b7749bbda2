"""Due times: by when a generation should be done, whether its deadline is lost, what a deadline lets in.

Owns the pace of steps and what follows from it. It does not know lanes' precedence, turns or who runs.
docs/adr/0008-due-times-and-turns.md has the reasons and the simulations behind the number.
"""

import math
from collections.abc import Callable, Iterable

from engine.policy.candidate import BatchKey, Candidate
from engine.policy.pace import Pace

OVERTAKING_STEPS = 12  # who has e times as few steps may come by so many full steps later, and go first
QUANTUM_STEPS = 8  # by so many full steps may a key or an account be ahead of another


class DueTimes:
    """The due times of one policy; while no pace is known of a key, its generations are due on arrival."""

    def __init__(
        self,
        max_rows: Callable[[BatchKey], int],
        bulk_patience_seconds: float,
        step_seconds: Callable[[BatchKey, int], float | None] | None,
        bucket_rows: Callable[[BatchKey, int], int],
    ) -> None:
        self._max_rows = max_rows
        self._bucket_rows = bucket_rows
        self._bulk_patience_seconds = bulk_patience_seconds
        self._pace = Pace(step_seconds)
        self._full_steps: dict[BatchKey, float] = {}  # seconds

    def urgency(self, member: Candidate, now: float) -> tuple[bool, float, float]:
        """What to sort by: whether its deadline is lost, its due time, its arrival.

        Due is some time after arrival, which grows with the logarithm of its steps: of two that wait, the
        shorter goes first unless it came that much later. A deadline before that is due itself.
        """
        submitted_at, deadline_at = member.submitted_at, member.deadline_at
        due_at = submitted_at + self._allowance_seconds(member)
        if deadline_at is None:
            return False, due_at, submitted_at
        fastest_seconds = self._bucket_seconds(member.key, member.num_rows)
        is_lost = now + member.num_full_steps_left * fastest_seconds > deadline_at
        return is_lost, min(due_at, deadline_at), submitted_at

    def max_rows_in_time(self, member: Candidate, now: float) -> int:
        """The most rows of a step batch with which `member` meets its deadline; 0 if it cannot any more."""
        cap = self._max_rows(member.key)
        if member.deadline_at is None:
            return cap
        seconds_left = member.deadline_at - now
        for num_rows in range(max(cap, member.num_rows), member.num_rows - 1, -1):
            if member.num_full_steps_left * self._bucket_seconds(member.key, num_rows) <= seconds_left:
                return num_rows
        return 0

    def quantum_seconds(self, keys: Iterable[BatchKey]) -> float:
        """The lead that turns allow, where `keys` are about: full steps of the slowest of them."""
        return QUANTUM_STEPS * max(self._full_step_seconds(key) for key in keys)

    def see(self, key: BatchKey, num_rows: int, seconds: float, *, is_full: bool) -> None:
        """Take note that a step of `num_rows` rows, in its bucket, took `seconds`; see `Pace.see`."""
        if self._pace.see(key, self._bucket_rows(key, num_rows), seconds, is_full=is_full):
            self._full_steps.clear()

    def forget_caps(self) -> None:
        """Take note that `max_rows` gives other caps from now on."""
        self._full_steps.clear()

    def _allowance_seconds(self, member: Candidate) -> float:
        if member.lane != "interactive":
            return self._bulk_patience_seconds
        return OVERTAKING_STEPS * self._full_step_seconds(member.key) * math.log(member.num_steps)

    def _full_step_seconds(self, key: BatchKey) -> float:
        seconds = self._full_steps.get(key)
        if seconds is None:
            seconds = self._full_steps[key] = self._bucket_seconds(key, self._max_rows(key))
        return seconds

    def _bucket_seconds(self, key: BatchKey, num_rows: int) -> float:
        return self._pace.seconds(key, self._bucket_rows(key, num_rows))
