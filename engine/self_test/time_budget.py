"""A time limit for a piece of work, which the work checks between its parts. It never interrupts work."""

import math
import time
from collections.abc import Callable


class TimeBudget:
    """A limit in seconds from now on; unlimited by default."""

    def __init__(self, seconds: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._began_at = clock()
        self._is_spent = False

    @property
    def used_seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._began_at

    @property
    def left_seconds(self) -> float:
        """Seconds until the limit; never negative."""
        return max(0.0, self.seconds - self.used_seconds)

    def is_spent(self, next_seconds: float = 0.0) -> bool:
        """Whether less time is left than the next part is expected to take; once true, it stays true."""
        self._is_spent |= self.used_seconds + next_seconds >= self.seconds
        return self._is_spent
