"""Reads the events of jobs in the order of their numbers, each once, at a constant cost.

Owns the position, and the wait for events that become visible after ones with higher numbers. It starts no
thread and does not know what the events mean.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

LATE_SECONDS = 5.0
"""How long numbers are read again: an event becomes visible when its transaction commits, possibly after
events with higher numbers."""
MAX_FOUND = 100
"""The most events that one turn reads."""

E = TypeVar("E")


class EventCursor(Generic[E]):
    """`first()` returns the number to start after, `newest()` the number of the newest event of any kind.

    `find(after, limit)` returns the wanted events with higher numbers, in order, as (number, event).
    """

    def __init__(
        self,
        first: Callable[[], int],
        newest: Callable[[], int],
        find: Callable[[int, int], Sequence[tuple[int, E]]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first = first
        self._newest = newest
        self._find = find
        self._clock = clock
        self._after: int | None = None
        self._handled: dict[int, float] = {}  # the handled events, and when
        self._seen: deque[tuple[float, int]] = deque()  # when each number was the newest

    def turn(self, handle: Callable[[E], None]) -> None:
        """Handle the new events. An event for which `handle` raises is handled again at the next turn."""
        if self._after is None:
            self._after = self._first()
        newest = self._newest()
        now = self._clock()
        found = self._find(self._after, MAX_FOUND) if newest > self._after else ()
        for number, event in found:
            if number not in self._handled:
                handle(event)
                self._handled[number] = now
        if len(found) == MAX_FOUND:
            # There are too many to read any of them twice.
            self._after = found[-1][0]
            self._seen.clear()
        else:
            # Needed even if nothing was found, or each turn would scan all events since the last one found.
            self._seen.append((now, newest))
        while self._seen and self._seen[0][0] <= now - LATE_SECONDS:
            self._after = self._seen.popleft()[1]
        self._handled = {number: at for number, at in self._handled.items() if number > self._after}
