"""The worker's heartbeat: one UPDATE renews every lease and returns cancellations and lost leases.

It is sent only while the engine ticks or is idle; a hung engine ends the process. If the database cannot be
reached for the length of a lease, the worker drops its jobs, since other workers may have claimed them. Once
it can be reached, the worker releases those that no other worker claimed.
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
    """The state of the engine that the heartbeat reads."""

    @property
    def ticked_at(self) -> float:
        """When the engine last finished a tick, on the monotonic clock."""

    @property
    def is_idle(self) -> bool:
        """Whether the engine has nothing to do."""


class Heartbeat:
    """A thread that sends a heartbeat every `heartbeat_seconds`; `db` should be a separate connection."""

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
        self._renewed_at = self._looked_at = clock()
        self._still_seconds = 0.0
        self._dropped: set[Lease] = set()
        self._is_leaving = False
        self._is_stopped = False
        self.has_others = False
        """Whether another worker served one of its tiers at the last heartbeat that was sent."""
        self.closed_tiers: frozenset[str] = frozenset()
        """The tiers of which it must not take jobs, as of that heartbeat."""
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Send a heartbeat, which registers the worker before it takes jobs, then start the thread."""
        self.beat()
        self._thread.start()

    def leave(self) -> None:
        """Report in all heartbeats from now on that no more jobs are taken, and send one at once."""
        self._is_leaving = True
        self._wake.set()

    def stop(self) -> None:
        """Stop sending heartbeats and wait for the thread."""
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
                # Without a heartbeat the worker would take jobs whose leases are never renewed.
                log.exception("heartbeat_crashed")
                self._end_process(EXIT_HUNG)

    def beat(self) -> None:
        """Send one heartbeat, unless the engine hangs; a failed one is logged."""
        if self._is_hung():
            log.error("engine_hung", seconds=self._watchdog_seconds)
            self._end_process(EXIT_HUNG)
            return
        held = self._in_flight.all()
        # The lease counts from when the statement was sent, since the reply may have been slow.
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
            self._drop_overdue()
            return
        self._renewed_at = asked_at
        self.has_others = beat.has_others
        self._close(beat.closed_tiers)
        self._release_dropped()
        for in_flight_job in held:
            if in_flight_job.lease.job_id in beat.lost:
                in_flight_job.cancel(lost=True)
            elif in_flight_job.lease.job_id in beat.canceled:
                in_flight_job.cancel()

    def _close(self, tiers: frozenset[str]) -> None:
        if tiers != self.closed_tiers:
            log.info("closed_tiers_changed", closed=sorted(tiers), serves=self._worker.tiers)
        self.closed_tiers = tiers

    def _is_hung(self) -> bool:
        now, looked_at = self._clock(), self._looked_at
        self._looked_at = now
        # Time in which this thread did not run either does not count: the process was stopped (SIGSTOP, a
        # paused machine), and its engine could not tick.
        awake_seconds = min(now - looked_at, 2 * self._heartbeat_seconds)
        if self._engine.is_idle:
            self._still_seconds = 0.0
        elif (ticked_at := self._engine.ticked_at) > looked_at:
            self._still_seconds = min(now - ticked_at, awake_seconds)
        else:
            self._still_seconds += awake_seconds
        return self._still_seconds > self._watchdog_seconds

    def _drop_overdue(self) -> None:
        if self._clock() - self._renewed_at > self._lease_seconds:
            for in_flight_job in self._in_flight.all():
                in_flight_job.cancel(lost=True)
                self._dropped.add(in_flight_job.lease)

    def _release_dropped(self) -> None:
        """Release dropped jobs without charge or quarantine, since no process died; the fence guards each."""
        try:
            for lease in tuple(self._dropped):
                release(
                    self._db,
                    lease,
                    code="lease_overdue",
                    detail="the database was unreachable for longer than a lease",
                    charged=False,
                    max_attempts=1,
                    backoff_seconds=0,
                )
                self._dropped.discard(lease)
        except StorageError as error:
            log.warning("dropped_jobs_not_released", count=len(self._dropped), error=str(error))
