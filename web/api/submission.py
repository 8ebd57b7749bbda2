"""Submitting work: commit a job or a batch once per idempotency key, then dispatch it.

The API's routes and the page submit here. What a request may ask for is decided in `web.api.admission`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import structlog

from catalogue.crash_points import reach
from catalogue.determinism import NOT_REPEATABLE
from storage import batches, dispatches
from storage.batches import Batch, EarlierJob
from storage.errors import IdempotencyMismatch, StorageError
from storage.job_views import Job
from storage.new_jobs import NewJobs
from storage.submissions import NewJob, create, made_before
from storage.workers import live_workers
from web.estimates.waiting_reasons import Wait
from web.refusals import FieldError, InvalidRequest, NotServed
from web.traces import traceparent
from web.wiring import wired

log = structlog.get_logger()


class Submission(NamedTuple):
    """The job of a request, and whether this request created it.

    If it did and the job was dispatched, with why it waits and its estimate, which cost no query.
    """

    job: Job
    is_new: bool
    wait: Wait | None = None
    eta_seconds: float | None = None


def submit(
    admit: Callable[[], NewJob],
    account_id: str,
    key: str | None,
    digest: str,
    *,
    earlier_digest: str | None = None,
) -> Submission:
    """Commit the job that `admit` gives, then dispatch it; the sweeper dispatches it if that fails.

    Returns the job that the idempotency key has created before, even if it would be refused now. Otherwise
    raises what `admit` raises, or `InvalidRequest`. `earlier_digest` is the digest that an earlier version
    stored for the same request.
    """
    try:
        return _submit(admit, account_id, key, digest)
    except IdempotencyMismatch:
        earlier = None if earlier_digest is None else made_before(wired().db, account_id, key, earlier_digest)
        if earlier is None:
            raise
        return Submission(earlier, is_new=False)


def _submit(admit: Callable[[], NewJob], account_id: str, key: str | None, digest: str) -> Submission:
    wiring = wired()
    try:
        new = replace(admit(), traceparent=traceparent())
        if errors := strict_errors([new]):
            raise InvalidRequest.of(errors)
    except (InvalidRequest, NotServed):
        earlier = made_before(wiring.db, account_id, key, digest)
        if earlier is None:
            raise
        return Submission(earlier, is_new=False)
    reach("admitted")
    job, is_new, dispatch = create(wiring.db, new, redispatch_seconds=wiring.redispatch_seconds)
    reach("inserted")
    if not is_new:
        return Submission(job, is_new=False)
    wiring.metrics.jobs_accepted.labels(job.tier, job.lane).inc()
    if dispatch is None:
        return Submission(job, is_new=True)
    if not wiring.dispatcher.dispatch([dispatch]):
        _undispatch(job)
        return Submission(job, is_new=True)
    reach("dispatched")
    load, eta_seconds = wiring.forecast.accept(job)
    return Submission(job, is_new=True, wait=wiring.waits.of_new_job(job, load), eta_seconds=eta_seconds)


def _undispatch(job: Job) -> None:
    """Record that no message was sent, so that the sweeper sends one as soon as it can."""
    try:
        dispatches.undispatch(wired().db, job.id, account_id=job.account_id)
    except StorageError as error:
        log.warning("dispatch_not_recorded", job_id=job.id, error=type(error).__name__)


@dataclass(frozen=True)
class NewBatch:
    """The jobs of a batch, the earlier jobs that its other rows name, and how its file was read."""

    jobs: NewJobs
    earlier: Sequence[EarlierJob]
    reading: dict[str, Any]


def submit_batch(
    read: Callable[[], NewBatch],
    account_id: str,
    key: str | None,
    digest: str,
    *,
    filename: str,
    webhook_url: str | None,
) -> tuple[Batch, bool]:
    """Commit the batch that `read` gives; workers claim its jobs.

    Returns `(batch, False)` if the idempotency key has created the batch before: its rows are not read again
    then, so that it is shown even if they would be refused now. Raises what `read` raises.
    """
    wiring = wired()
    earlier = batches.made_before(wiring.db, account_id, key, digest)
    if earlier is not None:
        return earlier, False
    new = read()
    batch, created = batches.create(
        wiring.db,
        account_id,
        filename,
        new.jobs,
        earlier_jobs=new.earlier,
        reading=new.reading,
        webhook_url=webhook_url,
        idempotency_key=key,
        request_hash=digest,
        traceparent=traceparent(),
    )
    if created:
        wiring.metrics.batch_rows_accepted.inc(batch.num_jobs)
    return batch, created


def strict_errors(new_jobs: Sequence[NewJob]) -> list[FieldError]:
    """The strict jobs whose determinism no live worker of their tier guarantees.

    Reads the workers' rows, and only if a job is strict.
    """
    if not any(job.parameters.strict for job in new_jobs):
        return []
    unrepeatable = unrepeatable_tiers()
    return [
        not_repeatable(job.tier) for job in new_jobs if job.parameters.strict and job.tier in unrepeatable
    ]


def unrepeatable_tiers() -> frozenset[str]:
    """The tiers of which no live worker gives repeatable images.

    A tier without a live worker is not among them, since its determinism is not known.
    """
    is_repeatable: dict[str, bool] = {}
    for worker in live_workers(wired().db, wired().worker_alive_seconds):
        for tier in worker.tiers:
            is_repeatable[tier] = is_repeatable.get(tier, False) or worker.determinism != NOT_REPEATABLE
    return frozenset(tier for tier, one_is in is_repeatable.items() if not one_is)


def not_repeatable(tier: str) -> FieldError:
    """The error of a strict job of such a tier."""
    return FieldError("strict", f"no live worker of tier {tier!r} gives repeatable images")
