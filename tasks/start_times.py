"""How the seconds of a worker's start were spent, from the birth of its process on. It knows no worker."""

import os
import time
from collections.abc import Callable
from pathlib import Path


class StartTimes:
    """Takes the time of one part after the other."""

    def __init__(self, seconds_since_birth: Callable[[], float] | None = None) -> None:
        self._now = seconds_since_birth or _seconds_since_birth
        self._last = 0.0
        self._parts: dict[str, float] = {}

    def took(self, part: str, *, of_which: tuple[str, float] | None = None) -> None:
        """The time since the part before was this one's, but for the seconds of a part within it."""
        now = self._now()
        seconds, self._last = now - self._last, now
        if of_which is not None:
            inner, inner_seconds = of_which
            self._parts[inner] = self._parts.get(inner, 0.0) + inner_seconds
            seconds -= inner_seconds
        self._parts[part] = self._parts.get(part, 0.0) + seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Of each part, and in all."""
        parts = {part: round(seconds, 2) for part, seconds in self._parts.items()}
        return parts | {"total": round(self._last, 2)}


def _seconds_since_birth() -> float:
    """Of this process, as Linux tells it to a hundredth; elsewhere its CPU time, which is nearly that."""
    try:
        # The fields behind the name, which may hold anything, of proc_pid_stat(5): the 22nd is starttime.
        after_name = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2]
        born_at = int(after_name.split()[22 - 3]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - born_at
    except (OSError, AttributeError):
        return time.process_time()
