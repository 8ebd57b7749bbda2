"""Looking at what the API depends on: on threads of their own, one look at a time for each dependency.

A request that asks is answered from the last look. It waits for a look under way only if it is young and
the one before it was quick. This module does not know what is looked at, nor HTTP.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

log = structlog.get_logger()

LATE_SECONDS = 1.5
"""A look that takes longer says that its dependency does not answer."""
MAX_WAIT_SECONDS = 1.0
"""How long a request waits for a look that has just begun."""
QUICK_SECONDS = 0.25
"""A look that took longer is not waited for the next time."""


@dataclass(frozen=True)
class Finding:
    """What one look found."""

    ok: bool
    detail: str


class Look:
    """The looks at one dependency. `look` returns its finding, or raises whatever a client library raises."""

    def __init__(
        self, name: str, look: Callable[[], Finding], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self._look = look
        self._clock = clock
        self._lock = threading.Lock()
        self._begun_at: float | None = None  # of the look that is under way
        self._ended = threading.Event()
        self._found: Finding | None = None
        self._last_seconds = 0.0

    def begin(self) -> None:
        """Look in a thread, unless a look is under way."""
        with self._lock:
            if self._begun_at is not None:
                return
            self._begun_at, self._ended = self._clock(), threading.Event()
        try:
            threading.Thread(target=self._run, name=f"look-{self.name}", daemon=True).start()
        except RuntimeError as error:  # no thread can be started: the next request tries again
            log.warning("look_not_begun", look=self.name, error=str(error))
            with self._lock:
                self._begun_at = None

    def finding(self, wait_until: float) -> Finding:
        """The last finding, after waiting for a look that has just begun, until `wait_until` on the clock."""
        with self._lock:
            begun_at, ended, was_quick = self._begun_at, self._ended, self._last_seconds < QUICK_SECONDS
        if was_quick and begun_at is not None and self._clock() - begun_at < MAX_WAIT_SECONDS:
            ended.wait(max(0.0, wait_until - self._clock()))
        with self._lock:
            seconds = 0.0 if self._begun_at is None else self._clock() - self._begun_at
            if seconds > LATE_SECONDS:
                return Finding(False, f"has not answered for {seconds:.0f} s")
            return self._found or Finding(False, "has not answered yet")

    def _run(self) -> None:
        try:
            found = self._look()
        except Exception as error:
            # Whatever a client library raises means the same here; addresses stay in the log.
            log.warning("look_failed", look=self.name, error=str(error))
            found = Finding(False, f"does not answer ({type(error).__name__})")
        with self._lock:
            assert self._begun_at is not None
            seconds = self._clock() - self._begun_at
            if found.ok and seconds > LATE_SECONDS:
                found = Finding(False, f"answers, but takes {seconds:.1f} s")
            self._found, self._last_seconds, self._begun_at = found, seconds, None
            self._ended.set()
