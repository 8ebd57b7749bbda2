"""The jobs that this process holds right now: their leases, their generations and their progress.

Task threads add and remove jobs; the heartbeat reads them all. It decides nothing about a job.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import structlog

from storage.errors import StorageError
from storage.jobs import Lease

if TYPE_CHECKING:
    from concurrent.futures import Future

    from engine.request import GeneratedImage

log = structlog.get_logger()

LET_GO_SECONDS = 5.0
"""How long jobs may be held after the engine has stopped, for example while their images are uploaded."""
PAUSE_SECONDS = 0.5
"""The pause after each write of progress: at most two writes a second, however many jobs are held."""


class Handle(Protocol):
    """The handle that `engine.submit` returns."""

    @property
    def future(self) -> "Future[GeneratedImage]":
        """Resolves to the image, or to an `EngineError`."""

    @property
    def progress(self) -> float:
        """The share of its steps that are done, from 0 to 1."""

    def cancel(self) -> None:
        """Stop at the next step boundary."""


class InFlightJob:
    """One held job; its handles are set once its generations are submitted."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.lost = False
        self._since = time.monotonic()
        self._canceled = False
        self._handles: Sequence[Handle] = ()
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """How long the job has been held."""
        return time.monotonic() - self._since

    @property
    def progress(self) -> float:
        """The mean progress of its generations, from 0 to 1."""
        return sum(handle.progress for handle in self._handles) / max(1, len(self._handles))

    def watch(self, handles: Sequence[Handle]) -> None:
        """Set the handles; cancels them if the job was canceled before."""
        with self._lock:
            self._handles = handles
            canceled = self._canceled
        if canceled:
            self.cancel()

    def cancel(self, *, lost: bool = False) -> None:
        """Stop every generation; with `lost`, the lease is gone and nothing more may be written."""
        with self._lock:
            self._canceled = True
            self.lost = self.lost or lost
            handles = self._handles
        for handle in handles:
            handle.cancel()


class InFlightJobs:
    """Every held job of the process, by id; safe to share between threads."""

    def __init__(self) -> None:
        self._held: dict[str, InFlightJob] = {}
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, lease: Lease) -> Iterator[InFlightJob]:
        """Hold a job while the block runs."""
        in_flight_job = InFlightJob(lease)
        with self._changed:
            self._held[lease.job_id] = in_flight_job
        try:
            yield in_flight_job
        finally:
            with self._changed:
                if self._held.get(lease.job_id) is in_flight_job:
                    del self._held[lease.job_id]
                self._changed.notify_all()

    def all(self) -> list[InFlightJob]:
        """The jobs held at this moment."""
        with self._changed:
            return list(self._held.values())

    def wait_until_empty(self, seconds: float) -> bool:
        """Wait at most `seconds` until no job is held; returns whether none is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held, seconds)


class ProgressWriter:
    """A thread that calls `write` with the leases of jobs that progressed, each with its progress (0-1).

    Progress is for display only. A write that fails is not retried: the next one, or the heartbeat,
    writes the newer value.
    """

    def __init__(
        self,
        in_flight: InFlightJobs,
        write: Callable[[Sequence[tuple[Lease, float]]], object],
        *,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self._in_flight = in_flight
        self._write = write
        self._pause_seconds = pause_seconds
        self._written: dict[Lease, float] = {}
        self._is_failing = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop writing; does not wait for a write that hangs."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(self._pause_seconds):
            try:
                self.turn()
            except Exception:
                # The jobs themselves do not depend on this.
                log.exception("progress_not_written")

    def turn(self) -> None:
        """Write the jobs that progressed since the last turn in one statement, if there are any."""
        held = [(in_flight_job.lease, in_flight_job.progress) for in_flight_job in self._in_flight.all()]
        moved = [(lease, progress) for lease, progress in held if progress > self._written.get(lease, 0.0)]
        if not moved:
            return
        # Remembered before the write: a failed write is not repeated until the job progresses.
        self._written = dict(held)
        try:
            self._write(moved)
        except StorageError as error:
            if not self._is_failing:
                log.warning("progress_not_written", error=str(error))
            self._is_failing = True
        else:
            self._is_failing = False
