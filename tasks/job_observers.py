"""Observers that a worker tells what becomes of its jobs, beside the rows themselves.

Owns what an observer is, and the one that tells Flower. It writes nothing, and decides nothing about jobs.
"""

from storage.job_views import Outcome
from storage.jobs import Claim
from tasks.task_events import Tell, event_of, started


class JobObserver:
    """Called on the thread of each job; it must not wait. This one does nothing."""

    def claimed(self, claim: Claim) -> None:
        """This worker has the job now."""

    def settled(self, claim: Claim, outcome: Outcome) -> None:
        """This worker has written the outcome: `queued` where the job goes back to its queue."""

    def found(self, job_id: str, outcome: Outcome | None) -> None:
        """The row of a job that is not this worker's, or not any more; `None` when there is no such job."""


class FlowerObserver(JobObserver):
    """Tells Flower, under the job's id."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def claimed(self, claim: Claim) -> None:
        """STARTED."""
        self._tell(claim.job.id, started(claim.lease.attempt))

    def settled(self, claim: Claim, outcome: Outcome) -> None:
        """SUCCESS, FAILURE, REVOKED or RETRY."""
        self.found(claim.job.id, outcome)

    def found(self, job_id: str, outcome: Outcome | None) -> None:
        """The same, of a row that another process wrote; nothing of a job that another worker runs."""
        event = event_of(outcome)
        if event is not None:
            self._tell(job_id, event)
