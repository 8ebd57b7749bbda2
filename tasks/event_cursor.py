"""Going through events of jobs in the order of their numbers, each once, at a cost that does not grow.

Owns the position, and the patience for an event that becomes visible after one with a higher number. It knows
no thread, and not what the events mean.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

LATE_SECONDS = 5.0
"""An event is seen when its transaction ends, maybe after events with higher numbers: for so long numbers are
looked at again."""
MAX_FOUND = 100
"""At one look."""

E = TypeVar("E")


class EventCursor(Generic[E]):
    """`first()` gives the event after which it begins, `newest()` the newest event of any kind.

    `find(after, limit)` gives the wanted events with higher numbers, the lowest first, each with its number.
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
        self._handled: dict[int, float] = {}  # the events that were handled, and when
        self._seen: deque[tuple[float, int]] = deque()  # when each number was the newest

    def turn(self, handle: Callable[[E], None]) -> None:
        """Look once. An event for which `handle` raises is found again at the next turn."""
        if self._after is None:
            self._after = self._first()
        newest = self._newest()
        now = self._clock()
        found = self._find(self._after, MAX_FOUND)
        for number, event in found:
            if number not in self._handled:
                handle(event)
                self._handled[number] = now
        if len(found) == MAX_FOUND:
            # So many that looking twice would never come to an end.
            self._after = found[-1][0]
            self._seen.clear()
        else:
            # Also where nothing was found, or each look would read all other events since the last one found.
            self._seen.append((now, newest))
        while self._seen and self._seen[0][0] <= now - LATE_SECONDS:
            self._after = self._seen.popleft()[1]
        self._handled = {number: at for number, at in self._handled.items() if number > self._after}
