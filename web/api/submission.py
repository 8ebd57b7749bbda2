"""Submitting work: commit a job or a batch once per idempotency key, then dispatch it.

The API's routes and the page submit here. What a request may ask for is decided in `web.api.admission`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from catalogue.determinism import NOT_REPEATABLE
from storage import batches, dispatches
from storage.batches import Batch, EarlierJob
from storage.errors import IdempotencyMismatch, StorageError
from storage.job_views import Job
from storage.submissions import NewJob, create, made_before
from storage.workers import live_workers
from web.refusals import FieldError, InvalidRequest, NotServed
from web.wiring import wired

log = structlog.get_logger()


def submit(
    admit: Callable[[], NewJob],
    account_id: str,
    key: str | None,
    digest: str,
    *,
    earlier_digest: str | None = None,
) -> tuple[Job, bool]:
    """Commit the job that `admit` gives, then dispatch it; the sweeper dispatches it if that fails.

    Returns `(job, False)` if the idempotency key has created the job before, even if it would be refused
    now. Otherwise raises what `admit` raises, or `InvalidRequest`. `earlier_digest` is the digest that an
    earlier version stored for the same request.
    """
    try:
        return _submit(admit, account_id, key, digest)
    except IdempotencyMismatch:
        earlier = None if earlier_digest is None else made_before(wired().db, account_id, key, earlier_digest)
        if earlier is None:
            raise
        return earlier, False


def _submit(admit: Callable[[], NewJob], account_id: str, key: str | None, digest: str) -> tuple[Job, bool]:
    wiring = wired()
    try:
        new = admit()
        if errors := strict_errors([new]):
            raise InvalidRequest.of(errors)
    except (InvalidRequest, NotServed):
        earlier = made_before(wiring.db, account_id, key, digest)
        if earlier is None:
            raise
        return earlier, False
    job, created = create(wiring.db, new, redispatch_seconds=wiring.redispatch_seconds)
    if created:
        wiring.metrics.jobs_accepted.labels(job.tier, job.lane).inc()
        if job.lane == "interactive":
            _dispatch(job)
    return job, created


def _dispatch(job: Job) -> None:
    db = wired().db
    try:
        dispatch = dispatches.of_new_job(db, job.id, account_id=job.account_id)
        if dispatch is not None and not wired().dispatcher.dispatch([dispatch]):
            # The row records that no message was sent, and the sweeper sends one as soon as it can.
            dispatches.undispatch(db, job.id, account_id=job.account_id)
    except StorageError as error:
        log.warning("dispatch_not_recorded", job_id=job.id, error=type(error).__name__)


@dataclass(frozen=True)
class NewBatch:
    """The jobs of a batch, the earlier jobs that its other rows name, and how its file was read."""

    jobs: Sequence[NewJob]
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
    """Commit the batch that `read` gives; the sweeper dispatches its jobs.

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
        redispatch_seconds=wiring.redispatch_seconds,
        webhook_url=webhook_url,
        idempotency_key=key,
        request_hash=digest,
    )
    if created:
        wiring.metrics.batch_rows_accepted.inc(batch.num_jobs)
    return batch, created


def strict_errors(new_jobs: Sequence[NewJob]) -> list[FieldError]:
    """The strict jobs whose determinism no live worker of their tier guarantees, in a CSV by line.

    Reads the workers' rows, and only if a job is strict. A tier without a live worker is accepted, since its
    determinism is not known.
    """
    if not any(job.parameters.strict for job in new_jobs):
        return []
    wiring = wired()
    is_repeatable: dict[str, bool] = {}
    for worker in live_workers(wiring.db, wiring.worker_alive_seconds):
        for tier in worker.tiers:
            is_repeatable[tier] = is_repeatable.get(tier, False) or worker.determinism != NOT_REPEATABLE
    return [
        FieldError("strict", f"no live worker of tier {job.tier!r} gives repeatable images", job.batch_line)
        for job in new_jobs
        if job.parameters.strict and not is_repeatable.get(job.tier, True)
    ]
