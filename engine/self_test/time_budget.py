"""How long a piece of work may take in all, asked between its parts. It knows no work and ends none."""

import math
import time
from collections.abc import Callable


class TimeBudget:
    """Seconds from now on; without a number, as many as it takes."""

    def __init__(self, seconds: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._began_at = clock()
        self._is_spent = False

    @property
    def used_seconds(self) -> float:
        """Since it was made."""
        return self._clock() - self._began_at

    @property
    def left_seconds(self) -> float:
        """Until it is spent; never negative."""
        return max(0.0, self.seconds - self.used_seconds)

    def is_spent(self, next_seconds: float = 0.0) -> bool:
        """Whether nothing is left, or less than the next part is thought to take; once so, it stays so."""
        self._is_spent |= self.used_seconds + next_seconds >= self.seconds
        return self._is_spent
