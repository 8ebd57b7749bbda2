"""Every change of an existing job: the transitions of `storage.transitions`.

Each is one guarded UPDATE, of which `storage.transition_statements` makes the statement. `_move` executes it
and completes the batch with its last job; what ends no batch is executed alone. If no row is returned, the
guard did not hold and the caller must stop. All times come from the database's clock. It does not know why
its callers call it.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from catalogue.accounting import Cost
from catalogue.states import TERMINAL
from catalogue.warnings import RequestWarning
from storage.bulk_turns import NEXT_BULK
from storage.database import Database
from storage.deliveries import complete_batches
from storage.errors import JobIsFinal
from storage.job_views import JOB_COLUMNS, Job, StoredImage, get, job_from_row
from storage.notifications import JOBS_ENDED, MAX_IDS, WEBHOOKS_DUE, announce
from storage.paused_tiers import NOT_PAUSED
from storage.transition_statements import statement_of
from storage.transition_values import CANCELED, CLAIMED, EXPIRED, FAILED, FINISHED, REAPED, RELEASED
from storage.transitions import CANCEL, CLAIM, EXPIRE, FAIL, FINISH, REAP, RELEASE, Transition

CANCELED_AT_ONCE = 1000
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
    traceparent: str | None = None  # the span of the request that submitted it
    completes_batch: bool = False  # its batch has a webhook, which is due once the last job has ended


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
    claimed = claim_each(
        db,
        [job_id],
        tiers=tiers,
        worker=worker,
        lease_seconds=lease_seconds,
        takes_quarantined=takes_quarantined,
    )
    return claimed.get(job_id)


def claim_each(
    db: Database,
    job_ids: Sequence[str],
    *,
    tiers: Sequence[str],
    worker: WorkerName,
    lease_seconds: float,
    takes_quarantined: bool = False,
) -> dict[str, Claim]:
    """As `claim`, for several jobs in one statement; returns the claims by job id."""
    guard = f"""jobs.id = ANY(:ids) AND tier = ANY(:tiers) AND cancel_requested_at IS NULL
           AND (:takes_quarantined OR NOT quarantined) AND {NOT_PAUSED.format(tier="tier")}
           AND (deadline_at IS NULL OR deadline_at > clock_timestamp())"""
    parameters = {"ids": list(job_ids), "tiers": list(tiers), "takes_quarantined": takes_quarantined}
    rows = _claim(db, guard, parameters, worker, lease_seconds)
    return {row.id: _claim_of(row) for row in rows}


def claim_next(
    db: Database,
    *,
    tiers: Sequence[str],
    worker: WorkerName,
    lease_seconds: float,
    limit: int,
    after_account: str = "",
) -> list[Claim]:
    """Claim up to `limit` due bulk jobs of these tiers in one statement, accounts in turn, oldest jobs first.

    The turns begin behind `after_account`. It leaves out quarantined jobs, and jobs that another worker is
    claiming at this moment.
    """
    guard = f"""jobs.id = ANY(ARRAY({NEXT_BULK})) AND cancel_requested_at IS NULL AND NOT quarantined
           AND (deadline_at IS NULL OR deadline_at > clock_timestamp())"""
    parameters = {"tiers": list(tiers), "limit": limit, "after_account": after_account}
    rows = _claim(db, guard, parameters, worker, lease_seconds)
    return [_claim_of(row) for row in sorted(rows, key=lambda row: (row.created_at, row.id))]


def _claim(
    db: Database, guard: str, parameters: Mapping[str, Any], worker: WorkerName, lease_seconds: float
) -> Sequence[Row[Any]]:
    named = {"boot_id": worker.boot_id, "worker": worker.name, "lease_seconds": lease_seconds}
    return db.execute(*statement_of(CLAIM, CLAIMED, guard, {**parameters, **named}, returning=_CLAIMED_JOB))


_CLAIMED_JOB = f"""{", ".join(f"jobs.{column.name}" for column in JOB_COLUMNS)}, lease_token, traceparent,
        extract(epoch FROM deadline_at - clock_timestamp())::float8 AS seconds_left,
        (SELECT embed_parameters FROM accounts WHERE accounts.id = jobs.account_id) AS embed_parameters,
        (SELECT webhook_url IS NOT NULL FROM batches WHERE batches.id = jobs.batch_id) AS completes_batch"""
"""A claim returns the whole job; roles that only end jobs have no right to read prompts."""


def _claim_of(row: Row[Any]) -> Claim:
    lease = Lease(row.id, row.attempt, str(row.lease_token))
    return Claim(
        job_from_row(row),
        lease,
        row.seconds_left,
        row.embed_parameters,
        row.traceparent,
        bool(row.completes_batch),
    )


@dataclass(frozen=True)
class Finished:
    """A job whose images are stored; `completes_batch` is that of its claim."""

    lease: Lease
    stored: Sequence[StoredImage]
    warnings: Sequence[RequestWarning]
    timings: Mapping[str, float]
    completes_batch: bool = True
    cost: Cost | None = None


def finish(
    db: Database,
    lease: Lease,
    *,
    stored: Sequence[StoredImage],
    warnings: Sequence[RequestWarning],
    timings: Mapping[str, float],
    cost: Cost | None = None,
) -> bool:
    """running → succeeded with its images, in one transaction; `False` if the lease was lost."""
    return lease.job_id in finish_each(db, [Finished(lease, stored, warnings, timings, cost=cost)])


def finish_each(db: Database, finished: Sequence[Finished]) -> set[str]:
    """As `finish`, for several jobs in one transaction; returns the ids of those whose lease was not lost."""
    ended = [
        {
            **_ended_attempt(one.lease),
            "new_warnings": [*map(asdict, one.warnings)],
            "new_timings": dict(one.timings),
            "new_cost_amount": None if one.cost is None else str(one.cost.amount),
            "new_cost_currency": None if one.cost is None else one.cost.currency,
        }
        for one in finished
    ]
    stored = [
        {**asdict(image), "job_id": one.lease.job_id, "attempt": one.lease.attempt}
        for one in finished
        for image in one.stored
    ]
    parameters = {**_ended_jobs(ended), "stored": json.dumps(stored, default=str)}
    more = {"before": _ENDED, "beside": "FROM ended", "after": _STORED}
    if any(one.completes_batch for one in finished):
        rows = db.run(lambda connection: _move(connection, FINISH, FINISHED, _IS_ENDED, parameters, **more))
    else:
        rows = db.execute(*statement_of(FINISH, FINISHED, _IS_ENDED, parameters, **more))
    _announce(db, rows)
    return {row.id for row in rows}


def is_finished(db: Database, lease: Lease) -> bool:
    """Whether `finish` under this lease ended the job: only that writes a success into its attempt."""
    return bool(db.execute(_IS_FINISHED, asdict(lease), idempotent=True))


_IS_FINISHED = text("SELECT id FROM jobs WHERE id = :job_id AND attempt = :attempt AND state = 'succeeded'")


# Locks in id order, as a heartbeat does. The ids are given twice: Postgres expects a hundred rows of a JSON
# text, and for so many it reads a table of some thousand jobs from end to end.
_ENDED = """ended AS MATERIALIZED (
            SELECT given.* FROM jsonb_to_recordset(CAST(:ended AS jsonb))
                   AS given(job_id text, ended_attempt int, token uuid, new_warnings jsonb, new_timings jsonb,
                            new_cost_amount numeric, new_cost_currency text)
              JOIN jobs ON jobs.id = given.job_id
             WHERE jobs.id = ANY(:ended_ids)
             ORDER BY jobs.id FOR NO KEY UPDATE OF jobs
        ), """
_IS_ENDED = "jobs.id = ended.job_id AND attempt = ended_attempt AND lease_token = token"
"""The guard `HELD` for several jobs at once."""
_STORED = """, stored AS (
            INSERT INTO images (job_id, index, attempt, seed, object_key, sha256, num_bytes, width, height)
            SELECT image.job_id, image.index, image.attempt, image.seed, image.object_key, image.sha256,
                   image.num_bytes, image.width, image.height
              FROM moved JOIN jsonb_to_recordset(CAST(:stored AS jsonb))
                   AS image(job_id text, index int, attempt int, seed bigint, object_key text, sha256 text,
                            num_bytes bigint, width int, height int) ON image.job_id = moved.id
        )"""


def _ended_jobs(ended: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"ended": json.dumps(ended), "ended_ids": [one["job_id"] for one in ended]}


def _ended_attempt(lease: Lease) -> dict[str, Any]:
    return {"job_id": lease.job_id, "ended_attempt": lease.attempt, "token": lease.token}


def _announce(db: Database, ended: Sequence[Row[Any]]) -> None:
    """Notify of jobs that have ended, after the commit (docs/adr/0027)."""
    job_ids = [row.id for row in ended]
    parts = (job_ids[start : start + MAX_IDS] for start in range(0, len(job_ids), MAX_IDS))
    messages = [(JOBS_ENDED, " ".join(part)) for part in parts]
    if any(row.webhook_url is not None for row in ended):
        messages.append((WEBHOOKS_DUE, ""))
    announce(db, messages)


def fail(db: Database, lease: Lease, *, code: str, detail: str, retryable: bool) -> str | None:
    """running → failed, or canceled if requested; returns the new state, `None` if the lease was lost."""
    parameters = {**asdict(lease), "code": code, "detail": detail[:500], "retryable": retryable}
    rows = db.run(lambda connection: _move(connection, FAIL, FAILED, HELD, parameters, detail=detail[:500]))
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
    released = release_each(
        db,
        [lease],
        code=code,
        detail=detail,
        charged=charged,
        max_attempts=max_attempts,
        backoff_seconds=backoff_seconds,
    )
    return released.get(lease.job_id)


def release_each(
    db: Database,
    leases: Sequence[Lease],
    *,
    code: str,
    detail: str,
    charged: bool,
    max_attempts: int,
    backoff_seconds: float,
) -> dict[str, str]:
    """As `release`, for several jobs in one transaction; returns the new states of those whose lease held."""
    parameters = {
        **_ended_jobs([_ended_attempt(lease) for lease in leases]),
        "code": code,
        "detail": detail[:500],
        "charged": charged,
        "max_attempts": max_attempts,
        "backoff_seconds": backoff_seconds,
    }
    more: dict[str, Any] = {"detail": code, "before": _ENDED, "beside": "FROM ended"}
    rows = db.run(lambda connection: _move(connection, RELEASE, RELEASED, _IS_ENDED, parameters, **more))
    return {row.id: row.state for row in rows}


def reap(db: Database, *, limit: int = 50) -> list[tuple[str, str]]:
    """Requeue up to `limit` jobs whose lease has expired; returns `(job id, new state)` of each.

    It is one statement, never read-then-write. The worker died, is stopped or is cut off, and it is unknown
    what its device worked on: each of its jobs is quarantined. None is charged with a crash, since none is
    known; an isolated one is noted in `possible_crashes`.
    """
    parameters = {"limit": limit, "is_quarantined": True, "is_charged": False, "is_only_one": False}
    more = {"detail": "its lease ran out", "before": _EXPIRED, "beside": "FROM expired", "after": _NOTED}
    rows = db.run(
        lambda connection: _move(connection, REAP, REAPED, "jobs.id = expired_id", parameters, **more)
    )
    return [(row.id, row.state) for row in rows]


# It reads the rows of all running jobs: an index of `lease_expires_at` would cost more (docs/adr/0030).
_EXPIRED = """expired AS MATERIALIZED (
            SELECT id AS expired_id, lease_boot_id AS lost_boot_id, isolated AS was_isolated FROM jobs
             WHERE state = 'running' AND lease_expires_at < statement_timestamp()
             ORDER BY lease_boot_id LIMIT :limit FOR UPDATE SKIP LOCKED
        ), """
_NOTED = """, noted AS (
            INSERT INTO possible_crashes (job_id, boot_id)
            SELECT moved.id, lost_boot_id FROM moved JOIN expired ON expired_id = moved.id
             WHERE was_isolated AND moved.state = 'queued'
            ON CONFLICT (job_id, boot_id) DO UPDATE SET lost_at = clock_timestamp()
        )"""


def reap_process(
    connection: Connection, boot_id: str, on_device: Collection[str] | None
) -> list[tuple[str, str]]:
    """Requeue every job of a process that is known to be dead; returns `(job id, new state)` of each.

    `on_device` are the jobs that were on its device or being encoded when it died; they are quarantined. One
    that was quarantined before is charged with a crash if it was isolated or the only one of them; the third
    one ends a job as `worker_lost`. Any other job is quarantined in its third attempt, since it may cause
    crashes that no record shows. `None` means that it is unknown which jobs were on the device.
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
        guard = f"""jobs.id = ANY(ARRAY(
                    SELECT id FROM jobs WHERE state = 'running' AND lease_boot_id = :boot_id AND {which}
                     ORDER BY id FOR UPDATE))"""
        parameters = {
            "boot_id": boot_id,
            "is_quarantined": is_quarantined,
            "is_charged": is_quarantined,
            "is_only_one": is_only_one,
            "on_device": list(on_device or ()),
        }
        rows = _move(connection, REAP, REAPED, guard, parameters, detail=detail)
        reaped += [(row.id, row.state) for row in rows]
    return reaped


def cancel(db: Database, account_id: str, job_id: str) -> Job:
    """Cancel a queued job at once, a running one by a flag; raises `NotFound` or `JobIsFinal`."""
    guard = "jobs.id = :id AND account_id = :account_id"
    flag = text(
        f"""UPDATE jobs SET cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())
            WHERE {guard} AND state = 'running' RETURNING id"""
    )
    parameters = {"id": job_id, "account_id": account_id}

    def work(connection: Connection) -> bool:
        # A job may be claimed or released between the two statements, so each is tried twice.
        return any(
            _move(connection, CANCEL, CANCELED, guard, parameters)
            or connection.execute(flag, parameters).all()
            for _ in range(2)
        )

    asked = db.run(work, account_id=account_id)
    job = get(db, account_id, job_id)
    if not asked:
        raise JobIsFinal(f"job {job_id!r} is {job.state} and cannot be canceled")
    return job


def cancel_part_of_batch(connection: Connection, batch_id: str) -> int:
    """Cancel up to `CANCELED_AT_ONCE` open jobs of a batch, or flag so many that run; returns how many.

    The caller has checked its account, and calls it until it returns 0.
    """
    guard = """jobs.id = ANY(ARRAY(
                SELECT id FROM jobs
                 WHERE id = ANY(ARRAY(SELECT id FROM jobs WHERE batch_id = :id AND state = 'queued'
                                       LIMIT :limit))
                   AND state = 'queued' ORDER BY id FOR UPDATE))"""
    flag = text(
        """UPDATE jobs SET cancel_requested_at = clock_timestamp()
            WHERE id = ANY(ARRAY(SELECT id FROM jobs WHERE batch_id = :id AND state = 'running'
                                    AND cancel_requested_at IS NULL ORDER BY id FOR UPDATE))
           RETURNING id"""
    )
    parameters = {"id": batch_id, "limit": CANCELED_AT_ONCE}
    # Running jobs first: a flagged job can only end, so none returns to the queue unseen. A job that is
    # claimed in between is found by the next call.
    flagged = connection.execute(flag, parameters).all()
    return len(flagged) + len(_move(connection, CANCEL, CANCELED, guard, parameters))


def expire(db: Database, *, limit: int = 500) -> int:
    """queued → expired for up to `limit` jobs whose deadline has passed; returns how many."""
    # Rows that another transaction holds are skipped, so that the order of the locks does not matter.
    guard = """jobs.id = ANY(ARRAY(
                SELECT id FROM jobs WHERE state = 'queued' AND deadline_at <= statement_timestamp()
                 ORDER BY deadline_at LIMIT :limit FOR UPDATE SKIP LOCKED))"""
    return len(db.run(lambda connection: _move(connection, EXPIRE, EXPIRED, guard, {"limit": limit})))


def _move(
    connection: Connection,
    transition: Transition,
    values: str,
    guard: str,
    parameters: Mapping[str, Any],
    **more: Any,
) -> Sequence[Row[Any]]:
    """Perform one transition, and complete the batches whose last job it ended."""
    moved = connection.execute(*statement_of(transition, values, guard, parameters, **more)).all()
    complete_batches(connection, {row.batch_id for row in moved if row.batch_id and row.state in TERMINAL})
    return moved
