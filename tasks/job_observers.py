"""Observers of a worker's jobs, and the search for jobs whose end no worker reports.

Owns the observer's interface and the observer that sends events to Flower. It writes no row and decides
nothing about jobs.
"""

import threading
from collections.abc import Callable

import structlog

from storage.errors import StorageError
from storage.job_views import Outcome
from storage.jobs import Claim
from tasks.event_cursor import EventCursor
from tasks.task_events import Tell, event_of, started

log = structlog.get_logger()

LOOK_BACK_SECONDS = 600.0
"""How far before its own start a worker searches: its only predecessor may have died."""


class JobObserver:
    """Called on the thread of each job; must not block. This base class does nothing."""

    def claimed(self, claim: Claim) -> None:
        """This worker has claimed the job."""

    def settled(self, claim: Claim, outcome: Outcome) -> None:
        """This worker has written the outcome: `queued` if the job went back to its queue."""

    def found(self, job_id: str, outcome: Outcome | None) -> None:
        """The row of a job that this worker does not hold; `None` if there is no such job."""


class FlowerObserver(JobObserver):
    """Sends Celery events to Flower, under the job's id."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def claimed(self, claim: Claim) -> None:
        """Send STARTED."""
        self._tell(claim.job.id, started(claim.lease.attempt))

    def settled(self, claim: Claim, outcome: Outcome) -> None:
        """Send SUCCESS, FAILURE, REVOKED or RETRY."""
        self.found(claim.job.id, outcome)

    def found(self, job_id: str, outcome: Outcome | None) -> None:
        """Send the same events for a row written by another process; none if another worker runs the job."""
        event = event_of(outcome)
        if event is not None:
            self._tell(job_id, event)


class TakenAway:
    """A thread that calls `look_up` once with the id of each job whose end was not written by a worker.

    Such jobs were canceled or expired in the queue, or their worker died; Flower would show them as running
    or waiting forever. Several workers may report the same job, which is harmless.
    """

    def __init__(
        self, events: EventCursor[str], look_up: Callable[[str], None], *, look_seconds: float
    ) -> None:
        """`events` reads the ids of such jobs."""
        self._events = events
        self._look_up = look_up
        self._look_seconds = look_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taken-away", daemon=True)

    def start(self) -> None:
        """Start the thread; call it once events can be sent."""
        self._thread.start()

    def stop(self) -> None:
        """Stop searching."""
        self._stopping.set()

    def turn(self) -> None:
        """Search once; raises `StorageError`."""
        self._events.turn(self._look_up)

    def _run(self) -> None:
        while not self._stopping.wait(self._look_seconds):
            try:
                self.turn()
            except StorageError as error:
                log.warning("job_ends_not_reported", error=str(error))
            except Exception:
                log.exception("job_ends_not_reported")  # Flower gets no event for them; the rows are right
