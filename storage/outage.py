"""Whether a database is away: who finds out, who is told at once, and who looks whether it is back.

While it is away one thread looks, and everybody else is refused without waiting. It knows no SQL.
"""

import threading
from collections.abc import Callable

import structlog

from storage.errors import Unavailable

log = structlog.get_logger()

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.25, 2.0


class Outage:
    """Begins with `begin` and ends when `look` returns; `on_end` runs before anyone is let in again."""

    def __init__(self, look: Callable[[], None], on_end: Callable[[], None]) -> None:
        self._look = look
        self._on_end = on_end
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._is_closed = threading.Event()

    def refuse(self) -> None:
        """Raise `Unavailable` while the database is away."""
        reason = self._reason
        if reason is not None:
            raise Unavailable(f"the database is away ({reason})")

    def begin(self, reason: str) -> None:
        """The database did not answer: from now on one thread looks for it, and nobody else waits."""
        with self._lock:
            if self._reason is not None or self._is_closed.is_set():
                return
            self._reason = reason
        log.warning("database_away", reason=reason)
        threading.Thread(target=self._watch, name="database-outage", daemon=True).start()

    def close(self) -> None:
        """Stop looking."""
        self._is_closed.set()

    def _watch(self) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while not self._is_closed.wait(pause_seconds):
            try:
                self._look()
                break
            except Exception as error:
                # Whatever a driver raises means the same here: not yet.
                log.debug("database_still_away", error=type(error).__name__)
                pause_seconds = min(pause_seconds * 2, MAX_PAUSE_SECONDS)
        self._on_end()
        with self._lock:
            self._reason = None
        log.info("database_back")
