"""Whether a database is away: who finds out, who is told at once, and who looks whether it is back.

While it is away one thread looks, and everybody else is refused without waiting. It knows no SQL.
"""

import threading
import time
from collections.abc import Callable

import structlog

from storage.errors import Unavailable

log = structlog.get_logger()

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.25, 2.0
SILENT_SECONDS = 1.0
"""A look that fails sooner has had an answer."""
LOUD_SECONDS = 60.0
"""How often the log says why the database is still away: a password that was rotated, for one."""


class Outage:
    """Begins with `begin` and ends when `look` returns.

    `on_confirmed` runs once the first look has failed, `on_end` before anyone is let in again.
    """

    def __init__(
        self,
        look: Callable[[], None],
        on_end: Callable[[], None],
        on_confirmed: Callable[[], None] = lambda: None,
        *,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self._look = look
        self._on_end = on_end
        self._on_confirmed = on_confirmed
        self._silent_seconds = silent_seconds
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._is_looking = False
        self._is_closed = threading.Event()

    def refuse(self) -> None:
        """Raise `Unavailable` while the database is away."""
        reason = self._reason
        if reason is not None:
            raise Unavailable(f"the database is away ({reason})")

    def look_soon(self) -> None:
        """Look in a thread, since some work takes long; begin an outage only if the look gets no answer."""
        with self._lock:
            if self._reason is not None or self._is_looking or self._is_closed.is_set():
                return
            self._is_looking = True
        try:
            threading.Thread(target=self._look_once, name="database-look", daemon=True).start()
        except RuntimeError:  # no thread can be started: the work has its own end
            self._is_looking = False

    def begin(self, reason: str) -> None:
        """The database did not answer: from now on one thread looks for it, and nobody else waits."""
        with self._lock:
            if self._reason is not None or self._is_closed.is_set():
                return
            self._reason = reason
        log.warning("database_away", reason=reason)
        try:
            threading.Thread(target=self._watch, name="database-outage", daemon=True).start()
        except RuntimeError:  # no thread can be started: everybody tries for himself then
            with self._lock:
                self._reason = None
            raise

    def close(self) -> None:
        """Stop looking."""
        self._is_closed.set()

    def _look_once(self) -> None:
        began_at = time.monotonic()
        try:
            self._look()
        except Exception:
            # A server that refuses at once is full or stopping: whoever has a connection goes on. One look
            # may have met a moment that is over: nobody's work is ended before a second has failed as well.
            if time.monotonic() - began_at > self._silent_seconds:
                self.begin("no answer to a look")
        finally:
            self._is_looking = False

    def _watch(self) -> None:
        # At once: one late transaction need not mean that the database is away.
        pause_seconds, loud_at, is_confirmed = 0.0, time.monotonic(), False
        while not self._is_closed.wait(pause_seconds):
            try:
                self._look()
                break
            except Exception as error:
                # Whatever a driver raises means the same here: not yet.
                if time.monotonic() >= loud_at:
                    loud_at = time.monotonic() + LOUD_SECONDS
                    log.error("database_still_away", error=str(error).strip())
                if not is_confirmed:
                    is_confirmed = True
                    self._on_confirmed()
                pause_seconds = min(max(pause_seconds * 2, FIRST_PAUSE_SECONDS), MAX_PAUSE_SECONDS)
        if self._is_closed.is_set():
            return
        self._on_end()
        with self._lock:
            self._reason = None
        log.info("database_back")
