"""Continuous batching first come, first served: the baseline of the policy.

The engine is otherwise the same: generations join and leave at every step, and late ones are dropped.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from engine.engine import Engine
from engine.policy.policy import Candidate, Policy, Reason

C = TypeVar("C", bound=Candidate)


def first_that_fit(members: Sequence[C], max_rows: int) -> list[C]:
    """The first one and, in the order given, all others of its key that fit beside those before them."""
    batch, num_rows = [members[0]], members[0].num_rows
    for member in members[1:]:
        if num_rows == max_rows:
            break
        if member.key == members[0].key and num_rows + member.num_rows <= max_rows:
            batch.append(member)
            num_rows += member.num_rows
    return batch


class OldestFirst(Policy):
    """A policy that orders by arrival alone."""

    def order(self, members: Iterable[C], now: float) -> list[C]:  # noqa: ARG002  age needs no clock
        """The oldest first."""
        return sorted(members, key=lambda member: member.submitted_at)

    def _choose(self, running: Sequence[C], now: float) -> tuple[list[C], Reason | None]:
        if not running:
            return [], None
        ordered = self.order(running, now)
        batch = first_that_fit(ordered, self.max_rows(ordered[0].key))
        return batch, "alone" if len(batch) == len(ordered) else "cap"


class FifoEngine(Engine):
    """The engine under `OldestFirst`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._policy = OldestFirst(self._models.max_rows)
