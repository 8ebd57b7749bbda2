"""Turns: fair shares of the device among parties, and aging for work that would always come second.

Owns the seconds that were charged to each party, and the count of turns. It does not know what a party is (a
batch key, an account), which work is urgent, nor how long is too long.
"""

from collections.abc import Collection, Hashable, Sequence
from typing import Generic, Protocol, TypeVar

MAX_CREDIT = 2  # quanta
MAX_REMEMBERED = 10_000
AGING_TURN = 4


class Waiting(Protocol):
    """Work that waits."""

    @property
    def submitted_at(self) -> float:
        """The instant of its arrival."""


P = TypeVar("P", bound=Hashable)
W = TypeVar("W", bound=Waiting)


class Turns(Generic[P]):
    """Deficit round robin (Shreedhar and Varghese 1995) without a fixed round, on measured seconds.

    A party that is more than a quantum ahead of another one present waits for it. No party is owed more than
    `MAX_CREDIT` quanta, so one that was absent goes first only briefly and cannot save up time. Its use is
    remembered until all others have used as much, so that leaving and coming back cancels no debt.
    """

    def __init__(self) -> None:
        self._used_seconds: dict[P, float] = {}  # of parties above the floor
        self._floor_seconds = 0.0

    def ahead(self, present: Collection[P], quantum_seconds: float) -> set[P]:
        """The parties of `present` that have used so much that the others go first: never all of them."""
        used = {party: self._used_seconds.get(party, self._floor_seconds) for party in present}
        most = max(used.values())
        if most - MAX_CREDIT * quantum_seconds > self._floor_seconds:
            self._raise_floor(most - MAX_CREDIT * quantum_seconds)
        limit = max(min(used.values()), self._floor_seconds) + quantum_seconds
        return {party for party, seconds in used.items() if seconds > limit}

    def charge(self, party: P, seconds: float) -> None:
        """Record that `party` has used the device for `seconds`."""
        if len(self._used_seconds) >= MAX_REMEMBERED:
            self._raise_floor(max(self._used_seconds.values()))
        self._used_seconds[party] = self._used_seconds.get(party, self._floor_seconds) + seconds

    def _raise_floor(self, seconds: float) -> None:
        self._floor_seconds = seconds
        self._used_seconds = {party: used for party, used in self._used_seconds.items() if used > seconds}


class AgingTurns:
    """Every `AGING_TURN`-th turn of one kind of work (steps, admissions, decodings) goes to aged work."""

    def __init__(self) -> None:
        self._num_turns = 0  # since aged work had its last one

    def is_next_aged(self) -> bool:
        """Count a turn that aged work and other work compete for; returns whether aged work gets it."""
        self._num_turns = (self._num_turns + 1) % AGING_TURN
        return not self._num_turns

    def order(self, ordered: list[W], aged: Sequence[W]) -> list[W]:
        """`ordered`; in a turn of aged work, with the oldest of `aged` before all others."""
        if not aged or len(aged) == len(ordered) or not self.is_next_aged():
            return ordered
        oldest = min(aged, key=lambda member: member.submitted_at)
        return [oldest, *(member for member in ordered if member is not oldest)]
