"""The line of requests that want to wait for their jobs, where a service lets only some of them wait.

While it lets all wait, everybody passes. Once it has refused one, the others stand in line by the times at
which their requests were due, since the oldest jobs are likely to end first: the next one goes when a wait
has ended, and one more every half second, in case there is more room than that. It knows no HTTP.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count

PROBE_SECONDS = 0.5


@dataclass(order=True)
class _Standing:
    """One that stands in line."""

    due_seconds: float
    number: int
    called: threading.Event = field(default_factory=threading.Event, compare=False)


class Line:
    """Shared by all threads of a run."""

    def __init__(self, probe_seconds: float = PROBE_SECONDS) -> None:
        self._probe_seconds = probe_seconds
        self._lock = threading.Lock()
        self._standing: list[_Standing] = []
        self._numbers = count()
        self._has_prober = False
        self.is_closed = False
        """Whether the service has refused a wait and nothing has shown since that there is room."""

    def refused(self) -> None:
        """The service did not let a request wait."""
        self.is_closed = True

    def waited(self) -> None:
        """A wait has ended: its place is free for the next in line."""
        with self._lock:
            self._call_next()
            self.is_closed = bool(self._standing)

    def stand(self, due_seconds: float, left: Callable[[], float]) -> bool:
        """Return once it is this request's turn; False if no seconds are `left` before."""
        with self._lock:
            if not self.is_closed or not left():
                return left() > 0
            mine = _Standing(due_seconds, next(self._numbers))
            heappush(self._standing, mine)
            is_prober, self._has_prober = not self._has_prober, True
        try:
            while (seconds := left()) > 0:
                if mine.called.wait(min(seconds, self._probe_seconds) if is_prober else seconds):
                    return True
                with self._lock:
                    self._call_next()
            return mine.called.is_set()
        finally:
            with self._lock:
                if is_prober:
                    self._has_prober = False
                    self._call_next()  # somebody has to be the next prober
                if not mine.called.is_set() and mine in self._standing:
                    self._standing.remove(mine)
                    heapify(self._standing)

    def _call_next(self) -> None:
        if self._standing:
            heappop(self._standing).called.set()
