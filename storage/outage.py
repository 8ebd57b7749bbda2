"""Tracks whether a database is down: while it is, one thread checks it and all callers fail at once.

It knows no SQL: it calls `look` to check the database.
"""

import threading
import time
from collections.abc import Callable

import structlog

from storage.errors import Unavailable

log = structlog.get_logger()

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.25, 2.0
SILENT_SECONDS = 1.0
"""A check that fails in less time than this got an answer from the server."""
LOUD_SECONDS = 60.0
"""How often the log repeats why the database is still down, for example a rotated password."""


class Outage:
    """An outage starts with `begin` and ends when `look` returns without an error.

    `on_confirmed` is called when the first `look` has failed, `on_end` before callers are admitted again.
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
        """Raise `Unavailable` while the database is down."""
        reason = self._reason
        if reason is not None:
            raise Unavailable(f"the database is down ({reason})")

    def look_soon(self) -> None:
        """Check on a thread, for a long transaction; an outage begins only if the check gets no answer."""
        with self._lock:
            if self._reason is not None or self._is_looking or self._is_closed.is_set():
                return
            self._is_looking = True
        try:
            threading.Thread(target=self._look_once, name="database-look", daemon=True).start()
        except RuntimeError:  # no thread can be started; the transaction has its own deadline
            self._is_looking = False

    def begin(self, reason: str) -> None:
        """Start an outage, since the database did not answer: one thread checks it, and no caller waits."""
        with self._lock:
            if self._reason is not None or self._is_closed.is_set():
                return
            self._reason = reason
        log.warning("database_down", reason=reason)
        try:
            threading.Thread(target=self._watch, name="database-outage", daemon=True).start()
        except RuntimeError:  # no thread can be started: then each caller tries the database itself
            with self._lock:
                self._reason = None
            raise

    def close(self) -> None:
        """Stop checking."""
        self._is_closed.set()

    def _look_once(self) -> None:
        began_at = time.monotonic()
        try:
            self._look()
        except Exception:
            # A server that refuses at once is full or stopping, and open connections still work. A single
            # check may hit a brief disruption: transactions end only after a second check fails too.
            if time.monotonic() - began_at > self._silent_seconds:
                self.begin("no answer to a look")
        finally:
            self._is_looking = False

    def _watch(self) -> None:
        # The first check comes at once: one late transaction need not mean that the database is down.
        pause_seconds, loud_at, is_confirmed = 0.0, time.monotonic(), False
        while not self._is_closed.wait(pause_seconds):
            try:
                self._look()
                break
            except Exception as error:
                # Any error of the driver means that the database is not back yet.
                if time.monotonic() >= loud_at:
                    loud_at = time.monotonic() + LOUD_SECONDS
                    log.error("database_still_down", error=str(error).strip())
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
