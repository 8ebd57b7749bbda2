"""The thread of a worker that looks for jobs which left their queue or their worker without a worker's doing.

Nobody else would tell Flower of them: they were canceled or expired in the queue, or their worker died.
Several workers may tell the same, which does no harm. It does not know what is told.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from storage.errors import StorageError

log = structlog.get_logger()

LATE_SECONDS = 5.0
"""An event is seen when its transaction ends, maybe after events with higher numbers: for so long numbers are
looked at again."""

LOOK_BACK_SECONDS = 600.0
"""How far before its own start a worker looks: its predecessor may have died, and been the only one."""
MAX_FOUND = 100
"""At one look."""


class TakenAway:
    """Calls `look_up` with the id of each such job, once.

    `first()` gives the event after which it begins, `newest()` the newest event of any kind.
    `find(after, limit)` gives the wanted events with higher numbers, the lowest first, each with its job's
    id.
    """

    def __init__(
        self,
        first: Callable[[], int],
        newest: Callable[[], int],
        find: Callable[[int, int], Sequence[tuple[int, str]]],
        look_up: Callable[[str], None],
        *,
        look_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first = first
        self._newest = newest
        self._find = find
        self._look_up = look_up
        self._look_seconds = look_seconds
        self._clock = clock
        self._after: int | None = None
        self._told: dict[int, float] = {}  # the events that were told, and when
        self._seen: deque[tuple[float, int]] = deque()  # when each number was the newest
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
        if self._after is None:
            self._after = self._first()
        newest = self._newest()
        now = self._clock()
        found = self._find(self._after, MAX_FOUND)
        for number, job_id in found:
            if number not in self._told:
                self._look_up(job_id)
                self._told[number] = now
        if len(found) == MAX_FOUND:
            # So many that looking twice would never come to an end.
            self._after = found[-1][0]
            self._seen.clear()
        else:
            # Also where nothing was found, or each look would read all other events since the last one found.
            self._seen.append((now, newest))
        while self._seen and self._seen[0][0] <= now - LATE_SECONDS:
            self._after = self._seen.popleft()[1]
        self._told = {number: at for number, at in self._told.items() if number > self._after}

    def _run(self) -> None:
        while not self._stopping.wait(self._look_seconds):
            try:
                self.turn()
            except StorageError as error:
                log.warning("ends_not_told", error=str(error))
            except Exception:
                log.exception("ends_not_told")  # of the view alone: the rows are right
