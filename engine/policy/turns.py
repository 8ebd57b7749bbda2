"""Turns: how much each party has had, so that none of those present gets far ahead of another.

Owns the seconds that were charged and who is ahead. It does not know what a party is (a batch key, an
account), nor who is urgent: within the lead that it allows, the policy orders as it likes.
"""

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

MAX_CREDIT = 2  # quanta
MAX_REMEMBERED = 10_000

P = TypeVar("P", bound=Hashable)


class Turns(Generic[P]):
    """Deficit round robin (Shreedhar and Varghese 1995) without a fixed round, on measured seconds.

    A party that is more than a quantum ahead of another one present waits for it. Nobody is owed more
    than `MAX_CREDIT` quanta, so one that was away goes first for a moment and cannot save up; what it has
    had is remembered until all have had as much, so that coming back pays off no debt.
    """

    def __init__(self) -> None:
        self._used_seconds: dict[P, float] = {}  # of those above the floor
        self._floor_seconds = 0.0

    def ahead(self, present: Collection[P], quantum_seconds: float) -> set[P]:
        """Those of `present` that have had so much that the others go first: never all of them."""
        used = {party: self._used_seconds.get(party, self._floor_seconds) for party in present}
        most = max(used.values())
        if most - MAX_CREDIT * quantum_seconds > self._floor_seconds:
            self._raise_floor(most - MAX_CREDIT * quantum_seconds)
        limit = max(min(used.values()), self._floor_seconds) + quantum_seconds
        return {party for party, seconds in used.items() if seconds > limit}

    def charge(self, party: P, seconds: float) -> None:
        """Take note that `party` has had `seconds` of the device."""
        if len(self._used_seconds) >= MAX_REMEMBERED:
            self._raise_floor(max(self._used_seconds.values()))
        self._used_seconds[party] = self._used_seconds.get(party, self._floor_seconds) + seconds

    def _raise_floor(self, seconds: float) -> None:
        self._floor_seconds = seconds
        self._used_seconds = {party: used for party, used in self._used_seconds.items() if used > seconds}
