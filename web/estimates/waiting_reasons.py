"""Why jobs wait: a stable code, an explanation for their owner, and the position in the queue.

A table of rules is applied to the rows of a queued job; the first rule that applies gives the reason. It says
only what rows show: that the broker lost a message, for example, is only a guess. Jobs and batches
are shown even when the facts cannot be read.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import structlog
from pydantic import BaseModel, Field

from catalogue.states import State
from storage.batches import Batch
from storage.database import Database
from storage.errors import StorageError
from storage.job_views import Job
from storage.queue_facts import MAX_COUNTED, QueueFacts, next_jobs, queue_facts
from web.estimates.forecast import LaneLoad

log = structlog.get_logger()


class WaitingReason(BaseModel):
    """Why a job waits."""

    code: str = Field(description="Stable; `docs/reference/api.md` lists the codes.")
    detail: str


class TierWait(WaitingReason):
    """Why the queued jobs of a batch wait in one tier: the reason of the job that is next in that tier."""

    tier: str
    num_jobs: int = Field(description="Queued jobs of the batch in this tier.")


@dataclass(frozen=True)
class Wait:
    """What is shown of a job that waits; `position` 1 is next."""

    reason: WaitingReason
    position: int | None = None


@dataclass(frozen=True)
class Limits:
    """When a dispatch counts as overdue, how often a job is tried, when a silent worker counts as dead."""

    overdue_seconds: float
    max_attempts: int
    worker_alive_seconds: float


class Waits:
    """Reads why jobs and batches wait, a whole page of them at once."""

    def __init__(self, db: Database, limits: Limits) -> None:
        self._db = db
        self._limits = limits

    def of_jobs(self, account_id: str, jobs: Iterable[Job]) -> dict[str, Wait]:
        """The waits by job id; jobs that do not wait are left out. One query for all."""
        found = list(jobs)
        isolated = [job.id for job in found if _waits_to_run_isolated(job)]
        queued = [job.id for job in found if job.state is State.QUEUED]
        return dict.fromkeys(isolated, Wait(ISOLATED)) | self._in_queue(account_id, queued)

    def of_new_job(self, job: Job, load: LaneLoad | None) -> Wait:
        """The wait of a job that was just dispatched, from the load of its lane; it reads nothing."""
        if load is None:
            return Wait(NOT_READ_YET)
        facts = QueueFacts(
            tier=job.tier,
            lane=job.lane,
            is_dispatched=True,
            seconds_until_due=self._limits.overdue_seconds,
            seconds_since_dispatch=0.0,
            num_failures=0,
            last_error=None,
            quarantined=False,
            num_ahead=load.num_waiting,
            num_own_ahead=None,
            num_live_workers=load.num_live_workers,
            num_slots=load.num_slots,
            num_busy=load.num_busy,
            pause_reason=load.pause_reason,
        )
        return Wait(reason_of(facts, self._limits), None if facts.num_ahead is None else facts.num_ahead + 1)

    def of_batches(self, account_id: str, batches: Iterable[Batch]) -> dict[str, list[TierWait]]:
        """The waits by batch id; batches without a queued job are left out. Two queries for all."""
        waiting = [batch.id for batch in batches if batch.counts.get(State.QUEUED)]
        if not waiting:
            return {}
        try:
            nexts = next_jobs(self._db, account_id, waiting)
        except StorageError as error:
            log.warning("next_jobs_not_read", error=type(error).__name__)
            return {}
        waits = self._in_queue(account_id, [one.job_id for one in nexts])
        found: dict[str, list[TierWait]] = {}
        for one in nexts:
            reason = waits[one.job_id].reason
            wait = TierWait(tier=one.tier, num_jobs=one.num_jobs, code=reason.code, detail=reason.detail)
            found.setdefault(one.batch_id, []).append(wait)
        return found

    def _in_queue(self, account_id: str, job_ids: list[str]) -> dict[str, Wait]:
        """The wait of each of these jobs, which were queued a moment ago."""
        if not job_ids:
            return {}
        alive_seconds = self._limits.worker_alive_seconds
        try:
            found = queue_facts(self._db, account_id, job_ids, alive_seconds=alive_seconds)
        except StorageError as error:
            log.warning("queue_facts_not_read", error=type(error).__name__)
            return dict.fromkeys(job_ids, Wait(UNREAD))
        return dict.fromkeys(job_ids, Wait(LEFT)) | {
            job_id: Wait(
                reason_of(facts, self._limits), None if facts.num_ahead is None else facts.num_ahead + 1
            )
            for job_id, facts in found.items()
        }


def _waits_to_run_isolated(job: Job) -> bool:
    """Whether a worker claimed it from quarantine and has not begun it.

    `isolated` is cleared once its images are drawn, so progress is checked too.
    """
    return job.state is State.RUNNING and job.quarantined and not job.isolated and job.progress == 0


def reason_of(facts: QueueFacts, limits: Limits) -> WaitingReason:
    """What must change first for the job to start: the reason of the first rule that applies."""
    for code, rule in RULES.items():
        detail = rule(facts, limits)
        if detail is not None:
            return WaitingReason(code=code, detail=detail)
    raise AssertionError("the last rule always applies")


def _tier_paused(facts: QueueFacts, _: Limits) -> str | None:
    if facts.pause_reason is None:
        return None
    why = f" ({facts.pause_reason})" if facts.pause_reason else ""
    return f"tier {facts.tier!r} is paused{why}; the job waits until it is resumed"


def _no_live_worker(facts: QueueFacts, _: Limits) -> str | None:
    if facts.num_live_workers:
        return None
    return f"no live worker serves tier {facts.tier!r}; the job waits until one starts"


def _retry_backoff(facts: QueueFacts, limits: Limits) -> str | None:
    if facts.is_dispatched or not facts.num_failures or facts.seconds_until_due <= 0:
        return None
    tries = f"{facts.num_failures} of {limits.max_attempts} attempts failed, the last with {facts.last_error}"
    return f"{tries}; the next may start in {max(1, round(facts.seconds_until_due))} s"


def _dispatch_overdue(facts: QueueFacts, limits: Limits) -> str | None:
    if facts.num_busy:
        return None  # workers take jobs: this one has not had its turn
    if facts.seconds_since_dispatch is not None and facts.seconds_since_dispatch > limits.overdue_seconds:
        return (
            f"dispatched {facts.seconds_since_dispatch:.0f} s ago, but no idle worker has picked it up: the "
            "broker may be down or the message was lost; the sweeper dispatches it again"
        )
    if facts.is_dispatched or facts.seconds_until_due >= -limits.overdue_seconds:
        return None
    if facts.lane == "bulk":
        seconds = f"{-facts.seconds_until_due:.0f} s"
        return f"due for {seconds}, but no idle worker has claimed it: the workers' logs may tell why"
    return (
        f"should have been dispatched {-facts.seconds_until_due:.0f} s ago: "
        "the sweeper or the broker may be down or overloaded"
    )


def _runs_alone(facts: QueueFacts, _: Limits) -> str | None:
    return (
        "its worker died while running it; the next idle worker runs it in isolation"
        if facts.quarantined
        else None
    )


def _bulk_turn(facts: QueueFacts, _: Limits) -> str | None:
    if facts.is_dispatched or facts.lane != "bulk":
        return None
    own = _count(facts.num_own_ahead, "job")
    return f"workers claim bulk jobs as slots get free, in turn between accounts; {own} of yours ahead of it"


def _dispatch_due(facts: QueueFacts, _: Limits) -> str | None:
    return None if facts.is_dispatched else "the sweeper dispatches it in its next round"


def _all_slots_busy(facts: QueueFacts, _: Limits) -> str | None:
    if facts.num_busy < facts.num_slots:
        return None
    workers = _count(facts.num_live_workers, "live worker")
    slots = f"all {facts.num_slots} {facts.lane} slots of the {workers} of tier {facts.tier!r} are in use"
    return f"{slots}; {_count(facts.num_ahead, 'job')} ahead"


def _jobs_ahead(facts: QueueFacts, _: Limits) -> str | None:
    if facts.num_ahead == 0:
        return None
    return f"{_count(facts.num_ahead, 'job')} ahead in tier {facts.tier!r}, lane {facts.lane!r}"


def _about_to_start(facts: QueueFacts, _: Limits) -> str | None:
    return f"dispatched, and tier {facts.tier!r} has a free slot: a worker takes it next"


def _count(number: int | None, noun: str) -> str:
    if number is None:
        return f"more than {MAX_COUNTED} {noun}s"
    return f"{number} {noun}{'' if number == 1 else 's'}"


RULES = {
    "tier_paused": _tier_paused,
    "no_live_worker": _no_live_worker,
    "retry_backoff": _retry_backoff,
    "runs_alone": _runs_alone,  # before the rules about dispatches: quarantined jobs are not dispatched
    "dispatch_overdue": _dispatch_overdue,
    "bulk_turn": _bulk_turn,
    "dispatch_due": _dispatch_due,
    "all_slots_busy": _all_slots_busy,
    "jobs_ahead": _jobs_ahead,
    "about_to_start": _about_to_start,
}
"""The order is part of the table: a reason is given only where none before it applies."""

ISOLATED = WaitingReason(
    code="runs_alone",
    detail="its worker died while running it; its new worker runs it in isolation once its other jobs end",
)
UNREAD = WaitingReason(code="unknown", detail="the reason could not be read")
NOT_READ_YET = WaitingReason(code="unknown", detail="the queue has not been read yet: ask for the job again")
LEFT = WaitingReason(code="unknown", detail="it left the queue while the reason was read")
CODES = frozenset({*RULES, UNREAD.code})
