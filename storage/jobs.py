"""Every change of a job after its birth: the transitions of `storage.states`.

`_move` performs each transition as one guarded UPDATE which also writes the event and, for a final
state, the webhook delivery; with the last job of a batch, the batch's too. No row back means that the
guard said no: the caller lost and stops. All instants are the database's. It does not know who calls,
over what, or why.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, text

from storage.database import Database
from storage.deliveries import complete_batches
from storage.errors import JobIsFinal
from storage.job_views import JOB_COLUMNS, Job, JobWarning, StoredImage, get, job_from_row
from storage.states import CANCEL, CLAIM, EXPIRE, FAIL, FINISH, REAP, RELEASE, TERMINAL, Transition
from storage.tables import images

MAX_CRASHES = 3
MAX_UNSUSPECTED_ATTEMPTS = 3
"""A job whose process dies in this attempt or a later one is a suspect, whatever is known of that death."""
HELD = "jobs.id = :job_id AND state = 'running' AND attempt = :attempt AND lease_token = CAST(:token AS uuid)"
"""The guard of every write after a claim, for the parameters of a `Lease`."""


@dataclass(frozen=True)
class Lease:
    """What every later write must show: the fence."""

    job_id: str
    attempt: int
    token: str


@dataclass(frozen=True)
class Claim:
    """A job that is now this worker's, how long its owner still wants it, and what the account wants."""

    job: Job
    lease: Lease
    seconds_left: float | None
    embed_parameters: bool = False


@dataclass(frozen=True)
class WorkerName:
    """Who claims: the boot id ends with the process, the name is for people."""

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
    """queued → running under a fresh lease, or nothing: not ours, not now, or not any more."""
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
    warnings: Sequence[JobWarning],
    timings: dict[str, float],
) -> bool:
    """running → succeeded with its images, in one transaction; `False` when the lease was lost."""
    values = f"""state = 'succeeded', finished_at = clock_timestamp(), progress = 1,
        warnings = warnings || CAST(:warnings AS jsonb), timings = CAST(:timings AS jsonb), {_NO_LEASE}"""

    def work(connection: Connection) -> bool:
        parameters = {**asdict(lease), "warnings": json.dumps(list(warnings)), "timings": json.dumps(timings)}
        if not _move(connection, FINISH, values, HELD, parameters):
            return False
        owner = {"job_id": lease.job_id, "attempt": lease.attempt}
        connection.execute(insert(images), [{**asdict(image), **owner} for image in stored])
        return True

    return db.run(work)


def fail(db: Database, lease: Lease, *, code: str, detail: str, retryable: bool) -> str | None:
    """running → failed, or canceled when its owner asked for that; the new state, or nothing when lost."""
    values = f"""state = CASE WHEN cancel_requested_at IS NULL THEN 'failed' ELSE 'canceled' END,
        error_code = CASE WHEN cancel_requested_at IS NULL THEN :code END,
        error_detail = CASE WHEN cancel_requested_at IS NULL THEN :detail END,
        error_retryable = CASE WHEN cancel_requested_at IS NULL THEN :retryable END,
        finished_at = clock_timestamp(), {_NO_LEASE}"""
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
    """running → queued for another try; failed when `charged` tries are used up, canceled when asked.

    A drain is not charged: the job did nothing wrong. Returns the new state, or nothing when lost.
    """
    spent = "(:charged AND num_failures + 1 >= :max_attempts)"
    values = f"""state = CASE WHEN cancel_requested_at IS NOT NULL THEN 'canceled'
                              WHEN {spent} THEN 'failed' ELSE 'queued' END,
        num_failures = num_failures + CASE WHEN :charged THEN 1 ELSE 0 END,
        error_code = CASE WHEN cancel_requested_at IS NULL AND {spent} THEN :code END,
        error_detail = CASE WHEN cancel_requested_at IS NULL AND {spent} THEN :detail END,
        error_retryable = CASE WHEN cancel_requested_at IS NULL AND {spent} THEN true END,
        next_dispatch_at = CASE WHEN cancel_requested_at IS NULL AND NOT {spent}
                                THEN clock_timestamp() + make_interval(secs => :backoff_seconds) END,
        finished_at = CASE WHEN cancel_requested_at IS NOT NULL OR {spent} THEN clock_timestamp() END,
        dispatch_number = NULL, progress = 0, {_NO_LEASE}"""
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
    """Take back every job whose lease has run out: `(job id, new state)` of each.

    One statement, never read-then-write. The holder died or is deaf, and nobody says what its device worked
    on: each of its jobs becomes a suspect, and a job that ran alone is charged; the third charge ends it as
    `worker_lost`.
    """
    guard = """jobs.id IN (SELECT id FROM jobs
                           WHERE state = 'running' AND lease_expires_at < clock_timestamp()
                           ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED)"""
    parameters = {"limit": limit, "is_quarantined": True, "is_only_one": False}
    rows = db.run(
        lambda connection: _move(connection, REAP, _TAKEN_BACK, guard, parameters, detail="its lease ran out")
    )
    return [(row.id, row.state) for row in rows]


def reap_process(
    connection: Connection, boot_id: str, on_device: Collection[str] | None
) -> list[tuple[str, str]]:
    """Take back every job of a process that is known to be dead, at once: `(job id, new state)` of each.

    `on_device` are the jobs that were on its device or became a file as it died. They become
    suspects; one that was a suspect already is charged if it ran alone or was the only one of them. Any other
    job becomes a suspect in its third attempt, since it may kill where no record is kept. `None`: nobody
    knows what was on the device, and it may have been any job.
    """
    if on_device is None:
        parts = [(True, "TRUE", "its process died, and nobody knows what its device worked on")]
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
        rows = _move(connection, REAP, _TAKEN_BACK, guard, parameters, detail=detail)
        reaped += [(row.id, row.state) for row in rows]
    return reaped


def cancel(db: Database, account_id: str, job_id: str) -> Job:
    """Cancel at once when queued, by a flag when running; raises `NotFound` or `JobIsFinal`."""
    guard = "jobs.id = :id AND account_id = :account_id"
    values = (
        "state = 'canceled', finished_at = clock_timestamp(), next_dispatch_at = NULL, dispatch_number = NULL"
    )
    flag = text(
        f"""UPDATE jobs SET cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())
            WHERE {guard} AND state = 'running' RETURNING id"""
    )
    parameters = {"id": job_id, "account_id": account_id}

    def work(connection: Connection) -> bool:
        # A job can change sides between the two statements, so each is tried twice.
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
    """Cancel what is left of a batch, whose owner the caller has checked."""
    guard = """jobs.id IN (SELECT id FROM jobs WHERE batch_id = :id AND state = 'queued'
                           ORDER BY id FOR UPDATE)"""
    values = (
        "state = 'canceled', finished_at = clock_timestamp(), next_dispatch_at = NULL, dispatch_number = NULL"
    )
    flag = text(
        """UPDATE jobs SET cancel_requested_at = clock_timestamp()
            WHERE id IN (SELECT id FROM jobs WHERE batch_id = :id AND state = 'running'
                            AND cancel_requested_at IS NULL ORDER BY id FOR UPDATE) RETURNING id"""
    )
    parameters = {"id": batch_id}
    # Running ones first: a flagged job can only end, so none slips back into the queue behind us. A job
    # that was claimed in between is found by the next round.
    while connection.execute(flag, parameters).all() or _move(connection, CANCEL, values, guard, parameters):
        pass


def expire(db: Database, *, limit: int = 500) -> int:
    """queued → expired for every job whose deadline has passed; how many."""
    values = (
        "state = 'expired', finished_at = clock_timestamp(), next_dispatch_at = NULL, dispatch_number = NULL"
    )
    guard = """jobs.id IN (SELECT id FROM jobs WHERE state = 'queued' AND deadline_at <= clock_timestamp()
                           ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED)"""
    return len(db.run(lambda connection: _move(connection, EXPIRE, values, guard, {"limit": limit})))


_OUTCOME = "jobs.id, account_id, state, attempt, worker, webhook_url, batch_id"
_CLAIMED = f"""{", ".join(f"jobs.{column.name}" for column in JOB_COLUMNS)}, lease_token,
        extract(epoch FROM deadline_at - clock_timestamp())::float8 AS seconds_left,
        (SELECT embed_parameters FROM accounts WHERE accounts.id = jobs.account_id) AS embed_parameters"""
"""Who claims needs all of the job; who ends it has no right to read its prompt."""

_NO_LEASE = "lease_token = NULL, lease_boot_id = NULL, lease_expires_at = NULL"

_CRASHES = """(num_crashes + CASE WHEN :is_quarantined AND (isolated OR quarantined AND :is_only_one)
                                THEN 1 ELSE 0 END)"""
_IS_LOST = f"({_CRASHES} >= {MAX_CRASHES})"
_TAKEN_BACK = f"""state = CASE WHEN cancel_requested_at IS NOT NULL THEN 'canceled'
                              WHEN {_IS_LOST} THEN 'failed' ELSE 'queued' END,
        num_crashes = {_CRASHES}, isolated = false,
        quarantined = quarantined OR :is_quarantined OR attempt >= {MAX_UNSUSPECTED_ATTEMPTS},
        error_code = CASE WHEN cancel_requested_at IS NULL AND {_IS_LOST} THEN 'worker_lost' END,
        error_detail = CASE WHEN cancel_requested_at IS NULL AND {_IS_LOST}
                            THEN 'the worker died while it ran this job alone' END,
        error_retryable = CASE WHEN cancel_requested_at IS NULL AND {_IS_LOST} THEN false END,
        next_dispatch_at = CASE WHEN cancel_requested_at IS NULL AND NOT {_IS_LOST}
                                THEN clock_timestamp() END,
        finished_at = CASE WHEN cancel_requested_at IS NOT NULL OR {_IS_LOST} THEN clock_timestamp() END,
        dispatch_number = NULL, progress = 0, {_NO_LEASE}"""
"""Of a job whose process is gone; with `is_quarantined`, that job may have been the cause."""


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
    """Perform one transition: the guarded UPDATE, its event and, at the end of a life, the outbox row."""
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
