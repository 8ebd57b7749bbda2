"""Ageing: every fourth turn belongs to whoever has waited longest behind those who always go first.

Owns the count of turns. It does not know how long is too long, nor how the others are ordered.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

AGEING_TURN = 4


class Waiting(Protocol):
    """Whoever waits."""

    @property
    def submitted_at(self) -> float:
        """When it arrived."""


W = TypeVar("W", bound=Waiting)


class AgeingTurns:
    """Of one kind of work: steps, admissions, decodings."""

    def __init__(self) -> None:
        self._num_turns = 0  # since the last one that was theirs

    def is_theirs(self) -> bool:
        """One more turn that both want: whether it is that of those who have waited."""
        self._num_turns = (self._num_turns + 1) % AGEING_TURN
        return not self._num_turns

    def order(self, ordered: list[W], aged: Sequence[W]) -> list[W]:
        """`ordered`, or in their turn the oldest of `aged` before all others."""
        if not aged or len(aged) == len(ordered) or not self.is_theirs():
            return ordered
        oldest = min(aged, key=lambda member: member.submitted_at)
        return [oldest, *(member for member in ordered if member is not oldest)]
