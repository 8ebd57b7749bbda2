"""The mark on a suspect's row: set before each of its images begins, gone once that image has its outcome.

Owns the order in which the marks of a process are written, and how long the engine waits for one. It does
not know why a job is a suspect, nor what a crash costs it.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar

import structlog

from engine.errors import DeviceLost, EngineStopped
from storage.database import Database
from storage.errors import StorageError, Unavailable
from storage.isolation import mark_isolated, unmark_isolated
from storage.jobs import Claim

log = structlog.get_logger()

MAX_WAIT_SECONDS = 5.0


class NotIsolated(EngineStopped):
    """The row of a suspect could not be marked, so that it did not begin."""

    code: ClassVar[str] = Unavailable.code


class Isolations:
    """All marks of one process; `db` is best one of their own, whose statements end within the wait."""

    def __init__(self, db: Database, *, wait_seconds: float = MAX_WAIT_SECONDS) -> None:
        self._db = db
        self._wait_seconds = wait_seconds
        # One thread, so that a write which was given up comes before the next, and the last one holds. It
        # starts with the first mark.
        self._writer = ThreadPoolExecutor(1, "solo-marks")

    def of(self, claim: Claim) -> "Isolation":
        """The mark of a job that was just claimed."""
        return Isolation(self, claim)

    def write(self, statement: Callable[[Database], bool]) -> bool:
        """Run it and wait, whatever the network does no longer than `wait_seconds`: then `Unavailable`."""
        writing = self._writer.submit(statement, self._db)
        try:
            return writing.result(self._wait_seconds)
        except TimeoutError:
            writing.cancel()
            raise Unavailable(f"the database did not answer within {self._wait_seconds} seconds") from None


class Isolation:
    """Of one suspect: on its row while one of its images is all that the engine works on.

    `begin` and `end` run on the engine's thread, where nothing else begins until they return: the row says
    neither too late nor for too long that a crash is this job's own.
    """

    def __init__(self, marks: Isolations, claim: Claim) -> None:
        self._marks = marks
        self._lease = claim.lease
        self._num_images = claim.job.parameters.num_images
        self._num_ended = 0
        self._begun: int | None = None
        self._refusal: EngineStopped | None = None
        # An image may have ended before anybody could ask to be told: then `end` runs on another thread.
        self._lock = threading.Lock()

    def begin(self, index: int) -> None:
        """Mark it for image `index`; raises what gives the job back uncharged, then for the others too."""
        with self._lock:
            self._refusal = self._refusal or self._set()
            if self._refusal is not None:
                raise type(self._refusal)(str(self._refusal))
            self._begun = index

    def end(self, index: int, future: "Future[Any]") -> None:
        """Unmark it, if it was marked for image `index`; but not for a lost device, with which it crashed."""
        with self._lock:
            if self._begun != index or isinstance(future.exception(), DeviceLost):
                return
            self._begun = None
            self._num_ended += 1
            self._clear(self._num_ended / self._num_images)

    def _set(self) -> EngineStopped | None:
        try:
            held = self._marks.write(lambda db: mark_isolated(db, self._lease))
        except StorageError as error:
            return NotIsolated(str(error))
        return None if held else EngineStopped("the lease was lost before the first step")

    def _clear(self, progress: float) -> None:
        try:
            self._marks.write(lambda db: unmark_isolated(db, self._lease, progress=progress))
        except StorageError as error:
            # Until the next suspect's mark or its own end: what comes first takes this one off.
            log.warning("isolation_mark_left", job_id=self._lease.job_id, error=str(error))
