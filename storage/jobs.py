"""Every change of an existing job: the transitions of `storage.transitions`.

`_move` performs each transition as one guarded UPDATE which also writes the event and, for a final state, the
webhook delivery; with the last job of a batch, the batch's delivery too. If it returns no row, the guard did
not hold and the caller must stop. All times come from the database's clock. It does not know why its callers
call it.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, text

from catalogue.states import TERMINAL
from catalogue.warnings import RequestWarning
from storage.database import Database
from storage.deliveries import complete_batches
from storage.errors import JobIsFinal
from storage.job_views import JOB_COLUMNS, Job, StoredImage, get, job_from_row
from storage.tables import images
from storage.transitions import CANCEL, CLAIM, EXPIRE, FAIL, FINISH, REAP, RELEASE, Transition

MAX_CRASHES = 3
MAX_UNQUARANTINED_ATTEMPTS = 3
"""A job whose process dies in this attempt or a later one is quarantined, whatever caused the death."""
HELD = "jobs.id = :job_id AND state = 'running' AND attempt = :attempt AND lease_token = CAST(:token AS uuid)"
"""The guard of every write after a claim, with the fields of a `Lease` as parameters."""


@dataclass(frozen=True)
class Lease:
    """The fencing token that every write after a claim must present."""

    job_id: str
    attempt: int
    token: str


@dataclass(frozen=True)
class Claim:
    """A claimed job with its lease, the seconds until its deadline, and the account's preference."""

    job: Job
    lease: Lease
    seconds_left: float | None
    embed_parameters: bool = False


@dataclass(frozen=True)
class WorkerName:
    """The worker that claims: the boot id identifies its process, and people read the name."""

    boot_id: str
    name: str


def claim(
    db: Database,
    job_id: str,
    *,
    tiers: Sequence[str],
    worker: WorkerName,
    lease_seconds: float,
    takes_quarantined: bool = True,
) -> Claim | None:
    """queued → running under a new lease; `None` if it is not queued, not for this worker or not due."""
    guard = """jobs.id = :id AND tier = ANY(:tiers) AND cancel_requested_at IS NULL
           AND (:takes_quarantined OR NOT quarantined)
           AND (deadline_at IS NULL OR deadline_at > clock_timestamp())"""
    values = """state = 'running', attempt = attempt + 1, lease_token = gen_random_uuid(),
           lease_boot_id = :boot_id, worker = :worker, isolated = false, progress = 0,
           lease_expires_at = clock_timestamp() + make_interval(secs => :lease_seconds),
           started_at = clock_timestamp(), next_dispatch_at = NULL"""
    parameters = {
        "id": job_id,
        "tiers": list(tiers),
        "boot_id": worker.boot_id,
        "worker": worker.name,
        "lease_seconds": lease_seconds,
        "takes_quarantined": takes_quarantined,
    }
    rows = db.run(lambda connection: _move(connection, CLAIM, values, guard, parameters, returning=_CLAIMED))
    if not rows:
        return None
    row = rows[0]
    lease = Lease(row.id, row.attempt, str(row.lease_token))
    return Claim(job_from_row(row), lease, row.seconds_left, row.embed_parameters)


def finish(
    db: Database,
    lease: Lease,
    *,
    stored: Sequence[StoredImage],
    warnings: Sequence[RequestWarning],
    timings: dict[str, float],
) -> bool:
    """running → succeeded with its images, in one transaction; `False` if the lease was lost."""
    values = f"""state = 'succeeded', finished_at = clock_timestamp(), progress = 1,
        warnings = warnings || CAST(:warnings AS jsonb), timings = CAST(:timings AS jsonb), {_NO_LEASE}"""

    def work(connection: Connection) -> bool:
        parameters = {
            **asdict(lease),
            "warnings": json.dumps([*map(asdict, warnings)]),
            "timings": json.dumps(timings),
        }
        if not _move(connection, FINISH, values, HELD, parameters):
            return False
        owner = {"job_id": lease.job_id, "attempt": lease.attempt}
        connection.execute(insert(images), [{**asdict(image), **owner} for image in stored])
        return True

    return db.run(work)


def fail(db: Database, lease: Lease, *, code: str, detail: str, retryable: bool) -> str | None:
    """running → failed, or canceled if requested; returns the new state, `None` if the lease was lost."""
    values = _stopped("TRUE", code=":code", detail=":detail", retryable=":retryable")
    parameters = {**asdict(lease), "code": code, "detail": detail[:500], "retryable": retryable}
    rows = db.run(lambda connection: _move(connection, FAIL, values, HELD, parameters, detail=detail[:500]))
    return rows[0].state if rows else None


def release(
    db: Database,
    lease: Lease,
    *,
    code: str,
    detail: str,
    charged: bool,
    max_attempts: int,
    backoff_seconds: float,
) -> str | None:
    """running → queued for another attempt; failed after `max_attempts` charged ones, canceled if requested.

    A release is not `charged` if the job is not at fault, as in a drain. Returns the new state, `None` if the
    lease was lost.
    """
    spent = "(:charged AND num_failures + 1 >= :max_attempts)"
    queue_at = "clock_timestamp() + make_interval(secs => :backoff_seconds)"
    values = f"""num_failures = num_failures + CASE WHEN :charged THEN 1 ELSE 0 END,
        {_stopped(spent, code=":code", detail=":detail", retryable="true", queue_at=queue_at)}"""
    parameters = {
        **asdict(lease),
        "code": code,
        "detail": detail[:500],
        "charged": charged,
        "max_attempts": max_attempts,
        "backoff_seconds": backoff_seconds,
    }
    rows = db.run(lambda connection: _move(connection, RELEASE, values, HELD, parameters, detail=code))
    return rows[0].state if rows else None


def reap(db: Database, *, limit: int = 50) -> list[tuple[str, str]]:
    """Requeue up to `limit` jobs whose lease has expired; returns `(job id, new state)` of each.

    It is one statement, never read-then-write. The worker died or is cut off, and it is unknown what its
    device worked on: each of its jobs is quarantined, and an isolated one is charged with a crash. The third
    crash ends a job as `worker_lost`.
    """
    guard = """jobs.id IN (SELECT id FROM jobs
                           WHERE state = 'running' AND lease_expires_at < clock_timestamp()
                           ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED)"""
    parameters = {"limit": limit, "is_quarantined": True, "is_only_one": False}
    rows = db.run(
        lambda connection: _move(connection, REAP, _REAPED, guard, parameters, detail="its lease ran out")
    )
    return [(row.id, row.state) for row in rows]


def reap_process(
    connection: Connection, boot_id: str, on_device: Collection[str] | None
) -> list[tuple[str, str]]:
    """Requeue every job of a process that is known to be dead; returns `(job id, new state)` of each.

    `on_device` are the jobs that were on its device or being encoded when it died; they are quarantined. One
    that was quarantined before is charged with a crash if it was isolated or the only one of them. Any other
    job is quarantined in its third attempt, since it may cause crashes that no record shows. `None` means
    that it is unknown which jobs were on the device.
    """
    if on_device is None:
        parts = [(True, "TRUE", "its process died, and it is unknown what its device worked on")]
    else:
        parts = [
            (True, "id = ANY(:on_device)", "it was on the device when its process died"),
            (False, "id <> ALL(:on_device)", "it was not on the device when its process died"),
        ]
    is_only_one = on_device is not None and len(on_device) == 1
    reaped = []
    for is_quarantined, which, detail in parts:
        guard = f"""jobs.id IN (SELECT id FROM jobs
                                WHERE state = 'running' AND lease_boot_id = :boot_id AND {which}
                                ORDER BY id FOR UPDATE)"""
        parameters = {
            "boot_id": boot_id,
            "is_quarantined": is_quarantined,
            "is_only_one": is_only_one,
            "on_device": list(on_device or ()),
        }
        rows = _move(connection, REAP, _REAPED, guard, parameters, detail=detail)
        reaped += [(row.id, row.state) for row in rows]
    return reaped


def cancel(db: Database, account_id: str, job_id: str) -> Job:
    """Cancel a queued job at once, a running one by a flag; raises `NotFound` or `JobIsFinal`."""
    guard = "jobs.id = :id AND account_id = :account_id"
    values = f"state = 'canceled', {_OUT_OF_QUEUE}"
    flag = text(
        f"""UPDATE jobs SET cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())
            WHERE {guard} AND state = 'running' RETURNING id"""
    )
    parameters = {"id": job_id, "account_id": account_id}

    def work(connection: Connection) -> bool:
        # A job may be claimed or released between the two statements, so each is tried twice.
        return any(
            _move(connection, CANCEL, values, guard, parameters) or connection.execute(flag, parameters).all()
            for _ in range(2)
        )

    asked = db.run(work, account_id=account_id)
    job = get(db, account_id, job_id)
    if not asked:
        raise JobIsFinal(f"job {job_id!r} is {job.state} and cannot be canceled")
    return job


def cancel_batch(connection: Connection, batch_id: str) -> None:
    """Cancel the open jobs of a batch; the caller has checked its account."""
    guard = """jobs.id IN (SELECT id FROM jobs WHERE batch_id = :id AND state = 'queued'
                           ORDER BY id FOR UPDATE)"""
    values = f"state = 'canceled', {_OUT_OF_QUEUE}"
    flag = text(
        """UPDATE jobs SET cancel_requested_at = clock_timestamp()
            WHERE id IN (SELECT id FROM jobs WHERE batch_id = :id AND state = 'running'
                            AND cancel_requested_at IS NULL ORDER BY id FOR UPDATE) RETURNING id"""
    )
    parameters = {"id": batch_id}
    # Running jobs first: a flagged job can only end, so none returns to the queue unseen. A job that was
    # claimed in between is found in the next round.
    while connection.execute(flag, parameters).all() or _move(connection, CANCEL, values, guard, parameters):
        pass


def expire(db: Database, *, limit: int = 500) -> int:
    """queued → expired for up to `limit` jobs whose deadline has passed; returns how many."""
    values = f"state = 'expired', {_OUT_OF_QUEUE}"
    guard = """jobs.id IN (SELECT id FROM jobs WHERE state = 'queued' AND deadline_at <= clock_timestamp()
                           ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED)"""
    return len(db.run(lambda connection: _move(connection, EXPIRE, values, guard, {"limit": limit})))


_OUTCOME = "jobs.id, account_id, state, attempt, worker, webhook_url, batch_id"
_CLAIMED = f"""{", ".join(f"jobs.{column.name}" for column in JOB_COLUMNS)}, lease_token,
        extract(epoch FROM deadline_at - clock_timestamp())::float8 AS seconds_left,
        (SELECT embed_parameters FROM accounts WHERE accounts.id = jobs.account_id) AS embed_parameters"""
"""A claim returns the whole job; roles that only end jobs have no right to read prompts."""

_NO_LEASE = "lease_token = NULL, lease_boot_id = NULL, lease_expires_at = NULL"
_OUT_OF_QUEUE = "finished_at = clock_timestamp(), next_dispatch_at = NULL, dispatch_number = NULL"


def _stopped(is_failed: str, *, code: str, detail: str, retryable: str, queue_at: str | None = None) -> str:
    """SET clauses for a job that stops running: canceled if its owner asked, else failed if `is_failed`.

    Otherwise it is queued again and dispatched at `queue_at`. Every argument is an SQL expression.
    """
    canceled = "cancel_requested_at IS NOT NULL"
    failed = f"NOT ({canceled}) AND {is_failed}"
    values = f"""state = CASE WHEN {canceled} THEN 'canceled'
                     WHEN {is_failed} THEN 'failed' ELSE 'queued' END,
        error_code = CASE WHEN {failed} THEN {code} END,
        error_detail = CASE WHEN {failed} THEN {detail} END,
        error_retryable = CASE WHEN {failed} THEN {retryable} END,
        finished_at = CASE WHEN {canceled} OR {is_failed} THEN clock_timestamp() END, {_NO_LEASE}"""
    if queue_at is None:
        return values
    return f"""{values}, dispatch_number = NULL, progress = 0,
        next_dispatch_at = CASE WHEN NOT ({canceled} OR {is_failed}) THEN {queue_at} END"""


_CRASHES = """(num_crashes + CASE WHEN :is_quarantined AND (isolated OR quarantined AND :is_only_one)
                                THEN 1 ELSE 0 END)"""
_IS_LOST = f"({_CRASHES} >= {MAX_CRASHES})"
_REAPED = f"""num_crashes = {_CRASHES}, isolated = false,
        quarantined = quarantined OR :is_quarantined OR attempt >= {MAX_UNQUARANTINED_ATTEMPTS},
        {_stopped(_IS_LOST, code="'worker_lost'", detail="'the worker died while it ran this job alone'",
                  retryable="false", queue_at="clock_timestamp()")}"""  # fmt: skip
"""The SET clauses for a job whose process died; with `is_quarantined`, the job may have caused that."""


def _move(
    connection: Connection,
    transition: Transition,
    values: str,
    guard: str,
    parameters: dict[str, Any],
    *,
    detail: str | None = None,
    returning: str = _OUTCOME,
) -> Sequence[Row[Any]]:
    """Perform one transition: the guarded UPDATE, its event and, in a final state, the outbox row."""
    statement = text(
        f"""
        WITH moved AS (
            UPDATE jobs SET {values} WHERE jobs.state = :source AND {guard} RETURNING {returning}
        ), logged AS (
            INSERT INTO job_events (job_id, transition, state, attempt, worker, detail)
            SELECT id, :transition, state, attempt, worker, :event_detail FROM moved
        ), notified AS (
            INSERT INTO webhook_deliveries (id, account_id, job_id, event, url, next_attempt_at)
            SELECT 'whd_' || replace(gen_random_uuid()::text, '-', ''), account_id, id, 'job.' || state,
                   webhook_url, clock_timestamp()
              FROM moved WHERE webhook_url IS NOT NULL AND state = ANY(:terminal)
        )
        SELECT moved.* FROM moved
        """
    )
    bound = {
        **parameters,
        "source": transition.sources.value,
        "transition": transition.name,
        "event_detail": detail,
        "terminal": [state.value for state in TERMINAL],
    }
    moved = connection.execute(statement, bound).all()
    complete_batches(connection, {row.batch_id for row in moved if row.batch_id and row.state in TERMINAL})
    return moved
