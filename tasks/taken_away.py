"""The thread of a worker that looks for jobs which left their queue or their worker without a worker's doing.

Nobody else would tell Flower of them: they were canceled or expired in the queue, or their worker died.
Several workers may tell the same, which does no harm. It does not know what is told.
"""

import threading
from collections.abc import Callable

import structlog

from storage.errors import StorageError
from tasks.event_cursor import EventCursor

log = structlog.get_logger()

LOOK_BACK_SECONDS = 600.0
"""How far before its own start a worker looks: its predecessor may have died, and been the only one."""


class TakenAway:
    """Calls `look_up` with the id of each such job, once; `events` goes through their ids."""

    def __init__(
        self, events: EventCursor[str], look_up: Callable[[str], None], *, look_seconds: float
    ) -> None:
        self._events = events
        self._look_up = look_up
        self._look_seconds = look_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taken-away", daemon=True)

    def start(self) -> None:
        """Begin, once Flower can be told."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()

    def turn(self) -> None:
        """Look once; raises `StorageError`."""
        self._events.turn(self._look_up)

    def _run(self) -> None:
        while not self._stopping.wait(self._look_seconds):
            try:
                self.turn()
            except StorageError as error:
                log.warning("ends_not_told", error=str(error))
            except Exception:
                log.exception("ends_not_told")  # of the view alone: the rows are right
