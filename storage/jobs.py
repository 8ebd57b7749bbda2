"""Every change of an existing job: the transitions of `storage.transitions`.

`_transition` makes each transition one guarded UPDATE which also writes the event and, for a final state, the
webhook delivery, and notifies those who listen. `_move` also completes the batch with its last job. If no row
is returned, the guard did not hold and the caller must stop. All times come from the database's clock. It
does not know why its callers call it.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Row, TextClause, text

from catalogue.states import TERMINAL
from catalogue.warnings import RequestWarning
from storage.database import Database
from storage.deliveries import complete_batches
from storage.errors import JobIsFinal
from storage.job_views import JOB_COLUMNS, Job, StoredImage, get, job_from_row
from storage.notifications import BULK_DUE, JOBS_ENDED, MAX_IDS, WEBHOOKS_DUE, announce
from storage.transitions import CANCEL, CLAIM, EXPIRE, FAIL, FINISH, REAP, RELEASE, Transition

MAX_CRASHES = 3
CANCELED_AT_ONCE = 1000
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
    guard = """jobs.id = ANY(:ids) AND tier = ANY(:tiers) AND cancel_requested_at IS NULL
           AND (:takes_quarantined OR NOT quarantined)
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
    guard = f"""jobs.id = ANY(ARRAY({_NEXT_BULK})) AND cancel_requested_at IS NULL AND NOT quarantined
           AND (deadline_at IS NULL OR deadline_at > clock_timestamp())"""
    parameters = {"tiers": list(tiers), "limit": limit, "after_account": after_account}
    rows = _claim(db, guard, parameters, worker, lease_seconds)
    return [_claim_of(row) for row in sorted(rows, key=lambda row: (row.created_at, row.id))]


def _claim(
    db: Database, guard: str, parameters: Mapping[str, Any], worker: WorkerName, lease_seconds: float
) -> Sequence[Row[Any]]:
    values = """state = 'running', attempt = attempt + 1, lease_token = gen_random_uuid(),
           lease_boot_id = :boot_id, worker = :worker, isolated = false, progress = 0,
           lease_expires_at = clock_timestamp() + make_interval(secs => :lease_seconds),
           started_at = clock_timestamp(), next_dispatch_at = NULL"""
    named = {"boot_id": worker.boot_id, "worker": worker.name, "lease_seconds": lease_seconds}
    return db.execute(*_transition(CLAIM, values, guard, {**parameters, **named}, returning=_CLAIMED))


def _claim_of(row: Row[Any]) -> Claim:
    lease = Lease(row.id, row.attempt, str(row.lease_token))
    return Claim(job_from_row(row), lease, row.seconds_left, row.embed_parameters, bool(row.completes_batch))


@dataclass(frozen=True)
class Finished:
    """A job whose images are stored; `completes_batch` is that of its claim."""

    lease: Lease
    stored: Sequence[StoredImage]
    warnings: Sequence[RequestWarning]
    timings: Mapping[str, float]
    completes_batch: bool = True


def finish(
    db: Database,
    lease: Lease,
    *,
    stored: Sequence[StoredImage],
    warnings: Sequence[RequestWarning],
    timings: Mapping[str, float],
) -> bool:
    """running → succeeded with its images, in one transaction; `False` if the lease was lost."""
    return lease.job_id in finish_each(db, [Finished(lease, stored, warnings, timings)])


def finish_each(db: Database, finished: Sequence[Finished]) -> set[str]:
    """As `finish`, for several jobs in one transaction; returns the ids of those whose lease was not lost."""
    values = f"""state = 'succeeded', finished_at = clock_timestamp(), progress = 1,
        warnings = warnings || new_warnings, timings = new_timings, {_NO_LEASE}"""
    guard = "jobs.id = ended.job_id AND attempt = ended_attempt AND lease_token = token"
    ended = [
        {
            "job_id": one.lease.job_id,
            "ended_attempt": one.lease.attempt,
            "token": one.lease.token,
            "new_warnings": [*map(asdict, one.warnings)],
            "new_timings": dict(one.timings),
        }
        for one in finished
    ]
    stored = [
        {**asdict(image), "job_id": one.lease.job_id, "attempt": one.lease.attempt}
        for one in finished
        for image in one.stored
    ]
    parameters = {"ended": json.dumps(ended), "stored": json.dumps(stored, default=str)}
    more = {"before": _ENDED, "beside": "FROM ended", "after": _STORED}
    if any(one.completes_batch for one in finished):
        rows = db.run(lambda connection: _move(connection, FINISH, values, guard, parameters, **more))
    else:
        rows = db.execute(*_transition(FINISH, values, guard, parameters, **more))
    _announce(db, rows)
    return {row.id for row in rows}


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
    # It reads the rows of all running jobs: an index of `lease_expires_at` would cost more (docs/adr/0030).
    guard = """jobs.id = ANY(ARRAY(
                SELECT id FROM jobs WHERE state = 'running' AND lease_expires_at < statement_timestamp()
                 LIMIT :limit FOR UPDATE SKIP LOCKED))"""
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
        guard = f"""jobs.id = ANY(ARRAY(
                    SELECT id FROM jobs WHERE state = 'running' AND lease_boot_id = :boot_id AND {which}
                     ORDER BY id FOR UPDATE))"""
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


def cancel_part_of_batch(connection: Connection, batch_id: str) -> int:
    """Cancel up to `CANCELED_AT_ONCE` open jobs of a batch, or flag so many that run; returns how many.

    The caller has checked its account, and calls it until it returns 0.
    """
    guard = """jobs.id = ANY(ARRAY(
                SELECT id FROM jobs
                 WHERE id = ANY(ARRAY(SELECT id FROM jobs WHERE batch_id = :id AND state = 'queued'
                                       LIMIT :limit))
                   AND state = 'queued' ORDER BY id FOR UPDATE))"""
    values = f"state = 'canceled', {_OUT_OF_QUEUE}"
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
    return len(flagged) + len(_move(connection, CANCEL, values, guard, parameters))


def expire(db: Database, *, limit: int = 500) -> int:
    """queued → expired for up to `limit` jobs whose deadline has passed; returns how many."""
    values = f"state = 'expired', {_OUT_OF_QUEUE}"
    # Rows that another transaction holds are skipped, so that the order of the locks does not matter.
    guard = """jobs.id = ANY(ARRAY(
                SELECT id FROM jobs WHERE state = 'queued' AND deadline_at <= statement_timestamp()
                 ORDER BY deadline_at LIMIT :limit FOR UPDATE SKIP LOCKED))"""
    return len(db.run(lambda connection: _move(connection, EXPIRE, values, guard, {"limit": limit})))


_OUTCOME = """jobs.id, account_id, state, attempt, worker, webhook_url, batch_id, tier, lane,
        next_dispatch_at"""
_CLAIMED = f"""{", ".join(f"jobs.{column.name}" for column in JOB_COLUMNS)}, lease_token,
        extract(epoch FROM deadline_at - clock_timestamp())::float8 AS seconds_left,
        (SELECT embed_parameters FROM accounts WHERE accounts.id = jobs.account_id) AS embed_parameters,
        (SELECT webhook_url IS NOT NULL FROM batches WHERE batches.id = jobs.batch_id) AS completes_batch"""
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


# Accounts with queued bulk jobs, by a loose index scan (one probe per account) that begins behind
# `after_account` and then from the start; at most one account for each job that is wanted.
_IS_DUE = """AND NOT quarantined AND next_dispatch_at <= statement_timestamp()
                    AND (deadline_at IS NULL OR deadline_at > statement_timestamp())"""
"""Also of an account's first job: an account whose jobs all wait for a retry must take no turn."""
_NEXT_BULK = f"""
    WITH RECURSIVE waiting AS (
        (SELECT tiers.tier, first.account_id, first.has_wrapped, 1 AS position
           FROM unnest(CAST(:tiers AS text[])) AS tiers(tier)
          CROSS JOIN LATERAL (
                (SELECT account_id, false AS has_wrapped FROM jobs
                  WHERE state = 'queued' AND tier = tiers.tier AND lane = 'bulk' AND dispatch_number IS NULL
                    {_IS_DUE} AND account_id > :after_account ORDER BY account_id LIMIT 1)
                UNION ALL
                (SELECT account_id, true FROM jobs
                  WHERE state = 'queued' AND tier = tiers.tier AND lane = 'bulk' AND dispatch_number IS NULL
                    {_IS_DUE} AND account_id <= :after_account ORDER BY account_id LIMIT 1)
                LIMIT 1) AS first)
        UNION ALL
        SELECT waiting.tier, next.account_id, next.has_wrapped, waiting.position + 1
          FROM waiting
         CROSS JOIN LATERAL (
                (SELECT account_id, waiting.has_wrapped FROM jobs
                  WHERE state = 'queued' AND tier = waiting.tier AND lane = 'bulk'
                    AND dispatch_number IS NULL {_IS_DUE}
                    AND account_id > waiting.account_id
                    AND (NOT waiting.has_wrapped OR account_id <= :after_account)
                  ORDER BY account_id LIMIT 1)
                UNION ALL
                (SELECT account_id, true FROM jobs
                  WHERE NOT waiting.has_wrapped AND state = 'queued' AND tier = waiting.tier
                    AND lane = 'bulk' AND dispatch_number IS NULL {_IS_DUE}
                    AND account_id <= :after_account
                  ORDER BY account_id LIMIT 1)
                LIMIT 1) AS next
         WHERE waiting.position < :limit
    ), share AS (
        SELECT ceil(:limit / greatest(count(*), 1)::float8)::int AS num_jobs FROM waiting
    )
    SELECT oldest.id
      FROM waiting CROSS JOIN share
     CROSS JOIN LATERAL (
            SELECT id, row_number() OVER (ORDER BY created_at, id) AS turn
              FROM (SELECT id, created_at FROM jobs
                     WHERE state = 'queued' AND tier = waiting.tier AND lane = 'bulk'
                       AND dispatch_number IS NULL AND account_id = waiting.account_id
                       {_IS_DUE}
                     ORDER BY created_at, id LIMIT share.num_jobs FOR UPDATE SKIP LOCKED) AS locked
           ) AS oldest
     ORDER BY oldest.turn, waiting.position LIMIT :limit"""

# Locks in id order, as a heartbeat does.
_ENDED = """ended AS MATERIALIZED (
            SELECT given.* FROM jsonb_to_recordset(CAST(:ended AS jsonb))
                   AS given(job_id text, ended_attempt int, token uuid, new_warnings jsonb, new_timings jsonb)
              JOIN jobs ON jobs.id = given.job_id
             ORDER BY jobs.id FOR NO KEY UPDATE OF jobs
        ), """
_STORED = """, stored AS (
            INSERT INTO images (job_id, index, attempt, seed, object_key, sha256, num_bytes, width, height)
            SELECT image.job_id, image.index, image.attempt, image.seed, image.object_key, image.sha256,
                   image.num_bytes, image.width, image.height
              FROM moved JOIN jsonb_to_recordset(CAST(:stored AS jsonb))
                   AS image(job_id text, index int, attempt int, seed bigint, object_key text, sha256 text,
                            num_bytes bigint, width int, height int) ON image.job_id = moved.id
        )"""

_LOGGED = """, logged AS (
            INSERT INTO job_events (job_id, transition, state, attempt, worker, detail)
            SELECT id, :transition, state, attempt, worker, :event_detail FROM moved
        )"""
_NOTIFIED = """, notified AS (
            INSERT INTO webhook_deliveries (id, account_id, job_id, event, url, next_attempt_at)
            SELECT 'whd_' || replace(gen_random_uuid()::text, '-', ''), account_id, id, 'job.' || state,
                   webhook_url, clock_timestamp()
              FROM moved WHERE webhook_url IS NOT NULL AND state = ANY(:terminal)
            RETURNING event
        )"""
_ANNOUNCED = f""", announced AS (
            SELECT pg_notify(channel, payload)
              FROM (SELECT '{JOBS_ENDED}' AS channel, string_agg(id, ' ') AS payload
                      FROM (SELECT id, (row_number() OVER () - 1) / {MAX_IDS} AS part
                              FROM moved WHERE state = ANY(:terminal)) AS final GROUP BY part
                    UNION ALL SELECT DISTINCT '{WEBHOOKS_DUE}', '' FROM notified
                    UNION ALL SELECT DISTINCT '{BULK_DUE}', tier FROM moved
                               WHERE state = 'queued' AND lane = 'bulk'
                                 AND next_dispatch_at <= clock_timestamp()) AS messages
        )"""
"""Notifications take effect with the commit, and only a CTE that is read is evaluated."""


def _move(
    connection: Connection,
    transition: Transition,
    values: str,
    guard: str,
    parameters: Mapping[str, Any],
    **more: Any,
) -> Sequence[Row[Any]]:
    """Perform one transition, and complete the batches whose last job it ended."""
    moved = connection.execute(*_transition(transition, values, guard, parameters, **more)).all()
    complete_batches(connection, {row.batch_id for row in moved if row.batch_id and row.state in TERMINAL})
    return moved


def _transition(
    transition: Transition,
    values: str,
    guard: str,
    parameters: Mapping[str, Any],
    *,
    detail: str | None = None,
    returning: str = _OUTCOME,
    before: str = "",
    beside: str = "",
    after: str = "",
) -> tuple[TextClause, dict[str, Any]]:
    """The statement of one transition and its parameters: the guarded UPDATE, its event and what follows.

    In a final state that is the outbox row and a notification, but for `FINISH`, which its caller announces.
    `before` and `after` are further CTEs.
    """
    is_claim = transition is CLAIM  # which ends nothing, and is planned anew for every job
    announces = transition not in (CLAIM, FINISH)
    bound = {
        **parameters,
        "source": transition.sources.value,
        "transition": transition.name,
        "event_detail": detail,
    }
    if not is_claim:
        bound["terminal"] = [state.value for state in TERMINAL]
    if not is_claim:
        after += _NOTIFIED + (_ANNOUNCED if announces else "")
    return _statement(values, guard, returning, before, beside, after, announces), bound


@lru_cache(maxsize=64)
def _statement(
    values: str, guard: str, returning: str, before: str, beside: str, after: str, announces: bool
) -> TextClause:
    return text(
        f"""
        WITH {before}moved AS (
            UPDATE jobs SET {values} {beside} WHERE jobs.state = :source AND {guard} RETURNING {returning}
        ){_LOGGED}{after}
        SELECT moved.* {", (SELECT count(*) FROM announced) AS num_announced" if announces else ""} FROM moved
        """
    )
