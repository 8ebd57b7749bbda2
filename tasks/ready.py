"""How a worker reports that it is ready: the ready file, and how long each part of its start took.

The file is there while the worker is ready, for probes that look for it.

It does not know what a worker does or when it is ready.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.heartbeat import Pulse


def write_ready_file(
    path: Path | None, *, device: str, tiers: Sequence[str], queues: Sequence[str], **facts: object
) -> None:
    """Write the facts and the process id as JSON, in one atomic step; does nothing without a path."""
    if path is None:
        return
    document = {"pid": os.getpid(), "device": device, "tiers": list(tiers), "queues": list(queues), **facts}
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(document))
    unfinished.replace(path)


class ReadyFile:
    """The ready file of a worker that may become unready, and ready again; nothing without a path."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._facts: dict[str, Any] | None = None
        self._is_there = False
        self._lock = threading.Lock()

    def begin(self, **facts: Any) -> None:
        """Write the file for the first time, with the arguments of `write_ready_file`."""
        with self._lock:
            self._facts = facts
            self._show(is_ready=True)

    def show(self, *, is_ready: bool) -> None:
        """Write or remove the file; nothing before `begin` and after `end`."""
        with self._lock:
            self._show(is_ready=is_ready)

    def end(self) -> None:
        """Remove the file for good."""
        with self._lock:
            self._show(is_ready=False)
            self._facts = None

    def watch(self, engine: "Pulse", late_seconds: float, look_seconds: float) -> None:
        """Until `end`: be ready while the engine has ended a step within `late_seconds`, or has no work."""
        good_at = time.monotonic()
        while self._facts is not None:
            now = time.monotonic()
            # The last step may be long ago where work has come just now.
            good_at = now if engine.is_idle else max(good_at, engine.ticked_at)
            self.show(is_ready=now - good_at < late_seconds)
            time.sleep(min(look_seconds, late_seconds))

    def _show(self, *, is_ready: bool) -> None:
        if self._path is None or self._facts is None or is_ready == self._is_there:
            return
        if is_ready:
            write_ready_file(self._path, **self._facts)
        else:
            self._path.unlink(missing_ok=True)
        self._is_there = is_ready


class StartTimes:
    """Measures the parts of a start one after the other, from the start of the process."""

    def __init__(self, process_seconds: Callable[[], float] | None = None) -> None:
        """`process_seconds` returns how long the process has been running."""
        self._now = process_seconds or _process_seconds
        self._last = 0.0
        self._parts: dict[str, float] = {}

    def took(self, part: str, *, of_which: tuple[str, float] | None = None) -> None:
        """Count the time since the previous call for `part`, less the seconds of an inner part `of_which`."""
        now = self._now()
        seconds, self._last = now - self._last, now
        if of_which is not None:
            inner, inner_seconds = of_which
            self._parts[inner] = self._parts.get(inner, 0.0) + inner_seconds
            seconds -= inner_seconds
        self._parts[part] = self._parts.get(part, 0.0) + seconds

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each part, and their `total`."""
        parts = {part: round(seconds, 2) for part, seconds in self._parts.items()}
        return parts | {"total": round(self._last, 2)}


def _process_seconds() -> float:
    """The age of this process: to a hundredth of a second on Linux, elsewhere about its CPU time."""
    try:
        # proc_pid_stat(5): field 2 is the name, which may hold any character; field 22 is starttime.
        after_name = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2]
        started_at = int(after_name.split()[22 - 3]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_at
    except (OSError, AttributeError):
        return time.process_time()
