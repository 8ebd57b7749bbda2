"""Quarantined jobs on a worker: taken up one at a time, each image isolated on the device.

A crash can be attributed to a job only if nothing else ran. So the row's `isolated` flag is set before each
image begins and cleared once that image has its outcome. It does not know why a job was quarantined, nor what
a crash costs it.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar

import structlog

from engine.errors import DeviceLost, EngineStopped
from storage.database import Database
from storage.errors import StorageError, Unavailable
from storage.isolation import clear_isolated, set_isolated
from storage.jobs import Claim
from tasks.errors import TaskError

log = structlog.get_logger()

BETWEEN_SECONDS = 0.05
"""The pause after each quarantined job, so that the worker's other threads can run."""
MAX_WAIT_SECONDS = 5.0


class Quarantine:
    """A thread that takes up one quarantined job at a time; these jobs are not dispatched.

    So a worker never holds two of them, any free worker takes the next, and none waits in a queue behind
    other jobs. It looks for one every `look_seconds`; `take_up` returns when the job has its outcome.
    """

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
        self._thread = threading.Thread(target=self._run, name="quarantine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def leave(self) -> None:
        """Stop taking up jobs."""
        self._stopping.set()

    def stop(self) -> None:
        """Stop taking up jobs, and wait until the current one has its outcome."""
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
            # If this thread ended, quarantined jobs would wait forever in a worker that looks healthy.
            log.exception("quarantine_not_read")
            return False
        if job_id is not None:
            self._take_up(job_id)
        return job_id is not None


class NotIsolated(TaskError, EngineStopped):
    """The `isolated` flag of a quarantined job could not be set, so the job did not begin."""

    code: ClassVar[str] = Unavailable.code
    retryable: ClassVar[bool] = True


class Isolations:
    """Writes the flags of one process, in order and each with a time limit.

    `db` should be a pool of its own whose statements end within `wait_seconds`.
    """

    def __init__(self, db: Database, *, wait_seconds: float = MAX_WAIT_SECONDS) -> None:
        self._db = db
        self._wait_seconds = wait_seconds
        # One thread, so that a write that timed out still ends before the next begins and the last one wins.
        # The executor starts it with the first write.
        self._writer = ThreadPoolExecutor(1, "isolation")

    def of(self, claim: Claim) -> "Isolation":
        """The isolation of a job that was just claimed."""
        return Isolation(self, claim)

    def write(self, statement: Callable[[Database], bool]) -> bool:
        """Run the statement; raises `Unavailable` after `wait_seconds`, even if the network hangs."""
        writing = self._writer.submit(statement, self._db)
        try:
            return writing.result(self._wait_seconds)
        except TimeoutError:
            writing.cancel()
            raise Unavailable(f"the database did not answer within {self._wait_seconds} seconds") from None


class Isolation:
    """The `isolated` flag of one quarantined job: set while the engine works on one of its images alone.

    `begin` and `end` run on the engine's thread, where nothing else begins until they return: the flag is set
    exactly while a crash can only be this job's fault.
    """

    def __init__(self, isolations: Isolations, claim: Claim) -> None:
        self._isolations = isolations
        self._lease = claim.lease
        self._num_images = claim.job.parameters.num_images
        self._num_ended = 0
        self._begun: int | None = None
        self._refusal: EngineStopped | None = None
        # If an image ends before its callback is registered, `end` runs on another thread.
        self._lock = threading.Lock()

    def begin(self, index: int) -> None:
        """Set the flag for image `index`; if that fails, raises an `EngineStopped` for it and all later ones.

        That error releases the job without a charge.
        """
        with self._lock:
            self._refusal = self._refusal or self._set()
            if self._refusal is not None:
                raise type(self._refusal)(str(self._refusal))
            self._begun = index

    def end(self, index: int, future: "Future[Any]") -> None:
        """Clear the flag if it was set for image `index`, unless the device was lost: that is a crash."""
        with self._lock:
            if self._begun != index or isinstance(future.exception(), DeviceLost):
                return
            self._begun = None
            self._num_ended += 1
            self._clear(self._num_ended / self._num_images)

    def _set(self) -> EngineStopped | None:
        try:
            held = self._isolations.write(lambda db: set_isolated(db, self._lease))
        except StorageError as error:
            return NotIsolated(str(error))
        return None if held else EngineStopped("the lease was lost before the first step")

    def _clear(self, progress: float) -> None:
        try:
            self._isolations.write(lambda db: clear_isolated(db, self._lease, progress=progress))
        except StorageError as error:
            # The flag is cleared when the next quarantined job begins or this one ends.
            log.warning("isolated_flag_not_cleared", job_id=self._lease.job_id, error=str(error))
