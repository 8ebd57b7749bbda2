"""The thread of a worker that takes suspects up, one at a time: no bell is rung for them.

So a worker never holds two of them, whoever is free takes the next, and none waits in a queue behind other
work. It does not know what makes a suspect, nor how one is run alone.
"""

import threading
from collections.abc import Callable

import structlog

from storage.errors import StorageError

log = structlog.get_logger()

BETWEEN_SECONDS = 0.05
"""After one that was taken up: the other threads of the worker come to their turn, whatever it was."""


class Quarantine:
    """Looks for a suspect every `look_seconds`; `take_up` returns once that job is done with."""

    def __init__(
        self,
        next_quarantined: Callable[[], str | None],
        take_up: Callable[[str], None],
        *,
        look_seconds: float,
    ) -> None:
        self._next_quarantined = next_quarantined
        self._take_up = take_up
        self._look_seconds = look_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="suspects", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def leave(self) -> None:
        """Take up no more."""
        self._stopping.set()

    def stop(self) -> None:
        """Take up no more, and wait until the one that was taken up is done with."""
        self.leave()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        pause_seconds = self._look_seconds
        while not self._stopping.wait(pause_seconds):
            pause_seconds = BETWEEN_SECONDS if self._look() else self._look_seconds

    def _look(self) -> bool:
        try:
            job_id = self._next_quarantined()
        except StorageError as error:
            log.warning("quarantine_not_read", error=str(error))
            return False
        except Exception:
            # Without this thread suspects would wait for ever, in a worker that looks well.
            log.exception("quarantine_not_read")
            return False
        if job_id is not None:
            self._take_up(job_id)
        return job_id is not None
