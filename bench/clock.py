"""Clocks that count a strategy's work and skip its waiting, and the turns in which strategies share a core.

A clock counts the CPU seconds of this process during its strategy's turns. Every strategy must run on one
thread: then these are the seconds that an idle core would need, whatever else runs on the machine. Turns are
short, so that a machine that slows down slows every strategy.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

TURN_SECONDS = 0.5

T = TypeVar("T")


class WorkClock:
    """CPU seconds of one strategy's turns, plus the time that it skipped while it had no work."""

    def __init__(self) -> None:
        self._seconds = 0.0  # until the turn began
        self._turn_begun_at: float | None = None

    def __call__(self) -> float:
        """Seconds; between turns it stands still."""
        if self._turn_begun_at is None:
            return self._seconds
        return self._seconds + time.process_time() - self._turn_begun_at

    def skip_to(self, instant: float) -> None:
        """Let the time until `instant` pass, in which nothing happens."""
        self._seconds += max(0.0, instant - self())

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Within it the clock runs."""
        self._turn_begun_at = time.process_time()
        yield
        self._seconds, self._turn_begun_at = self(), None


Part = Callable[[WorkClock], Generator[object, None, T]]
"""Works on the given clock, yields wherever another strategy may take a turn, and returns its result."""


def in_turns(parts: Sequence[Part[T]], turn_seconds: float = TURN_SECONDS) -> list[T]:
    """Run `parts` on one core, so many seconds of each in turn; return their results."""
    found: dict[int, T] = {}
    clocks = [WorkClock() for _ in parts]
    waiting = deque((index, part(clocks[index])) for index, part in enumerate(parts))
    while waiting:
        index, work = waiting.popleft()
        with clocks[index].turn():
            ends_at = time.process_time() + turn_seconds
            while index not in found and time.process_time() < ends_at:
                try:
                    next(work)
                except StopIteration as end:
                    found[index] = end.value
        if index not in found:
            waiting.append((index, work))
    return [found[index] for index in range(len(parts))]
