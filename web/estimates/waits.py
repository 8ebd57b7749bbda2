"""The waits of jobs and of batches, read for a whole page at once and put in words for their owner.

It never fails: a job that was accepted is shown even when why it waits cannot be read.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from storage.batches import Batch
from storage.errors import StorageError
from storage.job_views import Job
from storage.queue_facts import next_jobs, queue_facts
from storage.states import State
from web.estimates.waiting_reasons import ALONE, LEFT, UNREAD, Limits, WaitingReason, reason_of
from web.wiring import wired

log = structlog.get_logger()


class TierWait(WaitingReason):
    """Why the queued jobs of a batch wait in one tier, as said of the one that is next there."""

    tier: str
    num_jobs: int


@dataclass(frozen=True)
class Wait:
    """What is shown of a job that waits; `position` 1 is next."""

    reason: WaitingReason
    position: int | None = None


def waits_of_jobs(account_id: str, jobs: Iterable[Job]) -> dict[str, Wait]:
    """The waits of those of the account's jobs that wait, by job id."""
    found = list(jobs)
    alone = [job.id for job in found if _waits_to_run_alone(job)]
    queued = [job.id for job in found if job.state is State.QUEUED]
    return dict.fromkeys(alone, Wait(ALONE)) | _in_queue(account_id, queued)


def _waits_to_run_alone(job: Job) -> bool:
    """Whether it was claimed as a suspect and has not begun; `solo` ends with its images."""
    return job.state is State.RUNNING and job.quarantined and not job.isolated and job.progress == 0


def waits_of_batches(account_id: str, batches: Iterable[Batch]) -> dict[str, list[TierWait]]:
    """The waits of the account's batches, by batch id; those without a queued job are not there."""
    waiting = [batch.id for batch in batches if batch.counts.get(State.QUEUED)]
    if not waiting:
        return {}
    try:
        nexts = next_jobs(wired().db, account_id, waiting)
    except StorageError as error:
        log.warning("next_jobs_not_read", error=type(error).__name__)
        return {}
    waits = _in_queue(account_id, [one.job_id for one in nexts])
    found: dict[str, list[TierWait]] = {}
    for one in nexts:
        reason = waits[one.job_id].reason
        wait = TierWait(tier=one.tier, num_jobs=one.num_jobs, code=reason.code, detail=reason.detail)
        found.setdefault(one.batch_id, []).append(wait)
    return found


def _in_queue(account_id: str, job_ids: list[str]) -> dict[str, Wait]:
    """The wait of each of these jobs, which were queued a moment ago."""
    if not job_ids:
        return {}
    wiring = wired()
    limits = Limits(wiring.redispatch_seconds, wiring.max_attempts)
    try:
        found = queue_facts(wiring.db, account_id, job_ids, alive_seconds=wiring.worker_alive_seconds)
    except StorageError as error:
        log.warning("queue_facts_not_read", error=type(error).__name__)
        return dict.fromkeys(job_ids, Wait(UNREAD))
    return dict.fromkeys(job_ids, Wait(LEFT)) | {
        job_id: Wait(reason_of(facts, limits), None if facts.num_ahead is None else facts.num_ahead + 1)
        for job_id, facts in found.items()
    }
