"""The rows of workers, which say what they serve, and their heartbeats.

One heartbeat renews every lease and writes the progress of one worker, and returns cancellations and lost
leases, in one transaction. The caller decides whether the worker may send one.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, func, select, text

from storage.database import Database
from storage.jobs import Lease, reap_process
from storage.possible_crashes import settle_dead
from storage.tables import workers


@dataclass(frozen=True)
class Worker:
    """One process on one device; `seen_at` is its last heartbeat."""

    id: str
    boot_id: str
    host: str
    pid: int
    device: str
    tiers: tuple[str, ...]
    interactive_slots: int
    bulk_slots: int
    determinism: str
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """For each tier, the fingerprint of the profile in `storage.profiles` that applies to this worker."""
    started_at: datetime | None = None
    seen_at: datetime | None = None
    drain_requested_at: datetime | None = None


@dataclass(frozen=True)
class Beat:
    """The result of a heartbeat: the ids of jobs whose lease is lost, and of jobs to cancel.

    `has_others` says whether another live worker serves one of its tiers. Of its tiers, `closed_tiers` are
    those of which it must not take jobs now: all, if it was asked to drain, or else those that are paused.
    """

    lost: frozenset[str]
    canceled: frozenset[str]
    has_others: bool
    closed_tiers: frozenset[str] = frozenset()


def heartbeat(
    db: Database,
    worker: Worker,
    held: Sequence[tuple[Lease, float]],
    *,
    lease_seconds: float,
    is_leaving: bool = False,
) -> Beat:
    """Renew the worker's row and all of its leases; `held` pairs each lease with its progress (0-1).

    A worker that `is_leaving` keeps its leases but no longer counts as live.
    """

    def work(connection: Connection) -> Beat:
        has_others, closed_tiers = _renew_worker(
            connection, worker, is_leaving=is_leaving, alive_seconds=lease_seconds
        )
        if not held:
            return Beat(frozenset(), frozenset(), has_others, closed_tiers)
        rows = connection.execute(
            _RENEW_LEASES,
            {
                "ids": [lease.job_id for lease, _ in held],
                "attempts": [lease.attempt for lease, _ in held],
                "tokens": [lease.token for lease, _ in held],
                "progress": [progress for _, progress in held],
                "lease_seconds": lease_seconds,
            },
        ).all()
        kept = {row.id for row in rows}
        lost = frozenset(lease.job_id for lease, _ in held) - kept
        return Beat(lost, frozenset(row.id for row in rows if row.canceled), has_others, closed_tiers)

    return db.run(work)


def write_progress(db: Database, held: Sequence[tuple[Lease, float]]) -> int:
    """Write the progress (0-1) of these jobs under their leases in one statement; returns how many rows.

    It waits neither for locks, since it skips locked rows, nor for the commit to reach the disk.
    """
    parameters = {
        "ids": [lease.job_id for lease, _ in held],
        "attempts": [lease.attempt for lease, _ in held],
        "tokens": [lease.token for lease, _ in held],
        "progress": [progress for _, progress in held],
    }
    return len(db.run(lambda connection: connection.execute(_WRITE_PROGRESS, parameters).all()))


_WRITE_PROGRESS = text(
    """
    WITH mine AS (
        SELECT jobs.id, held.progress
          FROM jobs JOIN unnest(CAST(:ids AS text[]), CAST(:attempts AS int[]), CAST(:tokens AS uuid[]),
                                CAST(:progress AS float8[])) AS held(id, attempt, token, progress)
            ON jobs.id = held.id AND jobs.attempt = held.attempt AND jobs.lease_token = held.token
         WHERE jobs.state = 'running' AND jobs.progress < held.progress
         ORDER BY jobs.id FOR NO KEY UPDATE OF jobs SKIP LOCKED
    ), quickly AS MATERIALIZED (
        SELECT set_config('synchronous_commit', 'off', true)
    )
    UPDATE jobs SET progress = mine.progress, progress_at = clock_timestamp()
      FROM mine, quickly WHERE jobs.id = mine.id
    RETURNING jobs.id
    """
)


# Locks in id order, so that two statements over many rows do not deadlock.
_RENEW_LEASES = text(
    """
    WITH mine AS (
        SELECT jobs.id, held.progress
          FROM jobs JOIN unnest(CAST(:ids AS text[]), CAST(:attempts AS int[]), CAST(:tokens AS uuid[]),
                                CAST(:progress AS float8[])) AS held(id, attempt, token, progress)
            ON jobs.id = held.id AND jobs.attempt = held.attempt AND jobs.lease_token = held.token
         WHERE jobs.state = 'running' ORDER BY jobs.id FOR UPDATE OF jobs
    )
    UPDATE jobs SET lease_expires_at = clock_timestamp() + make_interval(secs => :lease_seconds),
                    progress = greatest(jobs.progress, mine.progress)
      FROM mine WHERE jobs.id = mine.id
    RETURNING jobs.id, jobs.cancel_requested_at IS NOT NULL AS canceled
    """
)


def _renew_worker(
    connection: Connection, worker: Worker, *, is_leaving: bool, alive_seconds: float
) -> tuple[bool, frozenset[str]]:
    """Write the worker's row; returns `has_others` and `closed_tiers` of a `Beat`."""
    row = connection.execute(
        text(
            """
            INSERT INTO workers (id, boot_id, host, pid, device, tiers, interactive_slots, bulk_slots,
                                 determinism, fingerprints, started_at, seen_at, stopped_at)
            VALUES (:id, :boot_id, :host, :pid, :device, CAST(:tiers AS jsonb), :interactive_slots,
                    :bulk_slots, :determinism, CAST(:fingerprints AS jsonb), clock_timestamp(),
                    clock_timestamp(),
                    CASE WHEN :is_leaving THEN clock_timestamp() END)
            ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at, stopped_at = excluded.stopped_at
            RETURNING EXISTS (
                SELECT FROM workers AS others
                 WHERE others.id <> :id AND others.stopped_at IS NULL AND others.drain_requested_at IS NULL
                   AND others.seen_at > statement_timestamp() - make_interval(secs => :alive_seconds)
                   AND jsonb_exists_any(others.tiers, CAST(:tier_names AS text[]))
            ) AS has_others, drain_requested_at IS NOT NULL AS is_drained,
            ARRAY(SELECT tier FROM paused_tiers) AS paused
            """
        ),
        {
            **{
                name: getattr(worker, name)
                for name in ("id", "boot_id", "host", "pid", "device", "determinism")
            },
            "interactive_slots": worker.interactive_slots,
            "bulk_slots": worker.bulk_slots,
            "tiers": json.dumps(worker.tiers),
            "tier_names": list(worker.tiers),
            "alive_seconds": alive_seconds,
            "fingerprints": json.dumps(dict(worker.fingerprints)),
            "is_leaving": is_leaving,
        },
    ).one()
    return row.has_others, frozenset(worker.tiers if row.is_drained else {*worker.tiers} & {*row.paused})


def live_workers(db: Database, alive_seconds: float, *, with_drained: bool = False) -> list[Worker]:
    """The workers whose heartbeat is younger than `alive_seconds`, and that are not stopped or drained."""
    young = func.statement_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, alive_seconds)
    query = (
        select(*(workers.c[name] for name in Worker.__dataclass_fields__))
        .where(workers.c.stopped_at.is_(None), workers.c.seen_at > young)
        .order_by(workers.c.device, workers.c.started_at)
    )
    if not with_drained:
        query = query.where(workers.c.drain_requested_at.is_(None))
    with db.transaction() as connection:
        rows = [dict(row._mapping) for row in connection.execute(query)]
    return [Worker(**{**row, "tiers": tuple(row["tiers"])}) for row in rows]


def num_live_workers(db: Database, alive_seconds: float) -> Counter[str]:
    """The number of live workers per tier; 0 for a tier that none serves."""
    return Counter(tier for worker in live_workers(db, alive_seconds) for tier in worker.tiers)


def ask_to_drain(db: Database, worker_ids: Collection[str]) -> None:
    """Have these workers take no more jobs, from their next heartbeat on, until `take_jobs_again`.

    It belongs to the process: one that is started in its place takes jobs.
    """
    db.execute(_DRAIN, {"ids": sorted(worker_ids)}, idempotent=True)


def take_jobs_again(db: Database, worker_ids: Collection[str]) -> None:
    """Undo `ask_to_drain`."""
    db.execute(_TAKE_JOBS, {"ids": sorted(worker_ids)}, idempotent=True)


def num_running(db: Database, boot_ids: Collection[str]) -> Counter[str]:
    """How many jobs each of these processes runs, by its boot id."""
    rows = db.execute(_NUM_RUNNING, {"boot_ids": sorted(boot_ids)}, idempotent=True)
    return Counter({row.lease_boot_id: row.num_jobs for row in rows})


_DRAIN = text(
    """UPDATE workers SET drain_requested_at = clock_timestamp()
        WHERE id = ANY(:ids) AND drain_requested_at IS NULL"""
)
_TAKE_JOBS = text("UPDATE workers SET drain_requested_at = NULL WHERE id = ANY(:ids)")
_NUM_RUNNING = text(
    """SELECT lease_boot_id, count(*) AS num_jobs FROM jobs
        WHERE state = 'running' AND lease_boot_id = ANY(:boot_ids) GROUP BY lease_boot_id"""
)


def say_goodbye(db: Database, boot_id: str) -> None:
    """Mark the worker as stopped, so that it no longer counts as live."""
    statement = text("UPDATE workers SET stopped_at = clock_timestamp() WHERE boot_id = :boot_id")
    with db.transaction() as connection:
        connection.execute(statement, {"boot_id": boot_id})


def declare_dead(db: Database, *, boot_id: str, on_device: Collection[str] | None) -> list[tuple[str, str]]:
    """Reap all jobs of a process that is known to be dead, and mark its worker as stopped.

    A job that it ran alone when the lease ran out is charged with a crash if it may have been on the device
    until the end, and the process was not heard of since then.

    `on_device` are the jobs that its device worked on when it died, `None` if unknown; see
    `storage.jobs.reap_process`. Returns `(job id, new state)` of each.
    """

    def work(connection: Connection) -> list[tuple[str, str]]:
        goodbye = text("UPDATE workers SET stopped_at = clock_timestamp() WHERE boot_id = :boot_id")
        connection.execute(goodbye, {"boot_id": boot_id})
        reaped = reap_process(connection, boot_id, on_device)
        # Afterwards, so that it sees what a sweeper noted that was reaping the same jobs.
        settle_dead(connection, boot_id, on_device)
        return reaped

    return db.run(work)
