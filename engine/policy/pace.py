"""Pace: how long a step takes at so many rows, as a profile says or else as it was seen here.

Owns the seconds that were seen. It does not know who runs, nor what a key stands for.
"""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

SMOOTHING = 0.2

K = TypeVar("K", bound=Hashable)


class Pace(Generic[K]):
    """Predicts step seconds; `profiled` answers first, and says `None` where it has not measured."""

    def __init__(self, profiled: Callable[[K, int], float | None] | None = None) -> None:
        self._profiled = profiled
        self._seen: dict[K, dict[int, float]] = {}
        self._predicted: dict[tuple[K, int], float] = {}

    def seconds(self, key: K, num_rows: int) -> float:
        """Seconds of one step of `key` at `num_rows` rows; 0.0 while nothing is known of the key.

        Where that size was neither profiled nor seen, it is the nearest size that was: a guess that never
        makes a smaller step batch look faster than it was seen to be.
        """
        known = self._predicted.get((key, num_rows))
        if known is None:
            known = self._predicted[key, num_rows] = self._predict(key, num_rows)
        return known

    def see(self, key: K, num_rows: int, seconds: float, *, is_full: bool = True) -> bool:
        """Take note that a step of `key` at `num_rows` rows took `seconds`; whether predictions change.

        One that was not full, since some of its rows were shallow, would have taken longer: it can only raise
        what is known.
        """
        if self._profiled is not None and self._profiled(key, num_rows) is not None:
            return False
        seen = self._seen.setdefault(key, {})
        known = seen.get(num_rows, seconds)
        if not is_full and seconds < known:
            return False
        seen[num_rows] = known + SMOOTHING * (seconds - known)
        self._predicted.clear()
        return True

    def _predict(self, key: K, num_rows: int) -> float:
        profiled = self._profiled(key, num_rows) if self._profiled is not None else None
        if profiled is not None:
            return profiled
        seen = self._seen.get(key)
        if not seen:
            return 0.0
        return seen[min(seen, key=lambda rows: (abs(rows - num_rows), rows))]
