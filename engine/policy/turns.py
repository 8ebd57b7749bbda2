"""Turns: fair shares of the device among parties, and a least share for work that would always come second.

Owns the seconds that were charged to each party and to aged work. It does not know what a party is (a batch
key, an account), which work is urgent, nor how long is too long.
"""

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

MAX_CREDIT = 2  # quanta
MAX_REMEMBERED = 10_000
AGED_SHARE = 0.25
"""Of the seconds of steps, for aged bulk work beside interactive work."""


P = TypeVar("P", bound=Hashable)


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


class AgedShare:
    """The share of the seconds of steps that bulk work gets at least, once it has waited too long.

    What it got without that, beside interactive work or while there was none, counts; so much of it is
    remembered that after `patience_seconds` of nothing it is owed some. Texts and images do not count.
    """

    def __init__(self, patience_seconds: float) -> None:
        self._max_credit_seconds = AGED_SHARE * patience_seconds
        self._owed_seconds = 0.0

    @property
    def is_owed(self) -> bool:
        """Whether aged work is to get the next step batch."""
        return self._owed_seconds > 0

    def charge(self, seconds: float, aged_seconds: float, *, is_any_aged: bool) -> None:
        """Record a step of `seconds`, of which `aged_seconds` count as given to aged work."""
        owed = max(self._owed_seconds + AGED_SHARE * seconds - aged_seconds, -self._max_credit_seconds)
        self._owed_seconds = owed if is_any_aged else min(owed, 0.0)
