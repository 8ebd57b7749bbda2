"""The worker's heart: one UPDATE a beat renews every lease, and brings cancellations and losses back.

It beats only while the engine ticks or is idle. A hung engine ends the process; a database that cannot
be reached for a lease's length makes the worker drop its jobs, because others may have them by then. Those
that nobody has once it can be reached are given back.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from storage.database import Database
from storage.errors import StorageError
from storage.jobs import Lease, release
from storage.workers import Worker, heartbeat
from tasks.in_flight import InFlightJobs

log = structlog.get_logger()

EXIT_HUNG = 70


class Pulse(Protocol):
    """What the heart asks of the engine."""

    @property
    def ticked_at(self) -> float:
        """When the engine last finished a tick, on the monotonic clock."""

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""


class Heartbeat:
    """A thread that beats every `heartbeat_seconds`, on a database connection of its own."""

    def __init__(
        self,
        db: Database,
        worker: Worker,
        in_flight: InFlightJobs,
        engine: Pulse,
        *,
        heartbeat_seconds: float,
        lease_seconds: float,
        watchdog_seconds: float,
        end_process: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._worker = worker
        self._in_flight = in_flight
        self._engine = engine
        self._heartbeat_seconds = heartbeat_seconds
        self._lease_seconds = lease_seconds
        self._watchdog_seconds = watchdog_seconds
        self._end_process = end_process
        self._clock = clock
        self._renewed_at = clock()
        self._dropped: set[Lease] = set()
        self._is_leaving = False
        self._is_stopped = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def start(self) -> None:
        """Beat once, so that the worker is known before it takes work, then keep beating."""
        self.beat()
        self._thread.start()

    def leave(self) -> None:
        """Say with every beat from now on that no work is taken any more, and beat at once."""
        self._is_leaving = True
        self._wake.set()

    def stop(self) -> None:
        """Stop beating and wait for the thread."""
        self._is_stopped = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._heartbeat_seconds)
            self._wake.clear()
            if self._is_stopped:
                return
            try:
                self.beat()
            except Exception:
                # A worker without a heart would take jobs whose leases nobody renews.
                log.exception("heartbeat_crashed")
                self._end_process(EXIT_HUNG)

    def beat(self) -> None:
        """One beat."""
        if self._is_hung():
            log.error("engine_hung", seconds=self._watchdog_seconds)
            self._end_process(EXIT_HUNG)
            return
        held = self._in_flight.all()
        # The lease is measured from before the question was sent: the answer may have been slow.
        asked_at = self._clock()
        try:
            beat = heartbeat(
                self._db,
                self._worker,
                [(in_flight_job.lease, in_flight_job.progress) for in_flight_job in held],
                lease_seconds=self._lease_seconds,
                is_leaving=self._is_leaving,
            )
        except StorageError as error:
            log.warning("heartbeat_failed", error=str(error))
            self._drop_what_is_overdue()
            return
        self._renewed_at = asked_at
        self._give_dropped_back()
        for in_flight_job in held:
            if in_flight_job.lease.job_id in beat.lost:
                in_flight_job.cancel(lost=True)
            elif in_flight_job.lease.job_id in beat.canceled:
                in_flight_job.cancel()

    def _is_hung(self) -> bool:
        return not self._engine.is_idle and self._clock() - self._engine.ticked_at > self._watchdog_seconds

    def _drop_what_is_overdue(self) -> None:
        if self._clock() - self._renewed_at > self._lease_seconds:
            for in_flight_job in self._in_flight.all():
                in_flight_job.cancel(lost=True)
                self._dropped.add(in_flight_job.lease)

    def _give_dropped_back(self) -> None:
        """Uncharged: nobody died, so that none of them may become a suspect. The fence guards each."""
        try:
            for lease in tuple(self._dropped):
                release(
                    self._db,
                    lease,
                    code="lease_overdue",
                    detail="the database was away for longer than a lease",
                    charged=False,
                    max_attempts=1,
                    backoff_seconds=0,
                )
                self._dropped.discard(lease)
        except StorageError as error:
            log.warning("dropped_jobs_not_given_back", count=len(self._dropped), error=str(error))
