"""How many jobs of each lane a worker holds at once, so that bulk work never takes interactive slots.

A slot is taken when a bell is received, on Celery's loop, so that a full lane stops being consumed before
the next bell can be heard. It does not know Celery: `on_full` and `on_free` are told.
"""

import threading
from collections.abc import Callable, Mapping


def _ignore(_lane: str) -> None:
    return


class Slots:
    """A counter for each lane; safe to share between threads."""

    def __init__(
        self,
        limits: Mapping[str, int],
        *,
        on_full: Callable[[str], None] = _ignore,
        on_free: Callable[[str], None] = _ignore,
    ) -> None:
        self._limits = dict(limits)
        self._taken = dict.fromkeys(limits, 0)
        self._lock = threading.Lock()
        self._on_full = on_full
        self._on_free = on_free

    def take(self, lane: str) -> None:
        """Take a slot; told as full once the last one is gone."""
        with self._lock:
            self._taken[lane] += 1
            if self._taken[lane] == self._limits[lane]:
                self._on_full(lane)

    def give_back(self, lane: str) -> None:
        """Give a slot back; told as free when the lane was full."""
        with self._lock:
            self._taken[lane] -= 1
            if self._taken[lane] == self._limits[lane] - 1:
                self._on_free(lane)

    def taken(self, lane: str) -> int:
        """How many slots of this lane are in use."""
        with self._lock:
            return self._taken[lane]
