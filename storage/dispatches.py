"""Selects the queued jobs to dispatch, and records every dispatch.

Owns the dispatch columns: a dispatch is counted and numbered here, in a committed transaction, before it is
published. It does not know the broker: callers pass what they read there.
"""

from dataclasses import dataclass

from sqlalchemy import text

from storage.database import LONG_SECONDS, Database


@dataclass(frozen=True)
class Dispatch:
    """One dispatch of one job: the content of its message, its queue, and what Flower shows of the job."""

    job_id: str
    tier: str
    lane: str
    dispatch_seq: int
    dispatch_number: int
    num_steps: int
    width: int
    height: int
    num_images: int


_COLUMNS = """jobs.id AS job_id, tier, lane, dispatch_seq, dispatch_number, num_inference_steps AS num_steps,
              width, height, num_images"""


def of_new_job(db: Database, job_id: str, *, account_id: str | None = None) -> Dispatch | None:
    """The dispatch that `storage.submissions` recorded for a new interactive job, or `None`."""
    query = text(
        f"""SELECT {_COLUMNS} FROM jobs
             WHERE id = :id AND state = 'queued' AND dispatch_number IS NOT NULL"""
    )
    with db.transaction(account_id=account_id) as connection:
        row = connection.execute(query, {"id": job_id}).one_or_none()
        return None if row is None else Dispatch(**row._mapping)


def feed(db: Database, tier: str, lane: str, limit: int, *, redispatch_seconds: float) -> list[Dispatch]:
    """Record dispatches of up to `limit` due jobs that have none, accounts in turn, oldest jobs first.

    It leaves out quarantined jobs, which workers find by themselves.
    """
    picked = """
        SELECT next.id
          FROM (SELECT DISTINCT account_id FROM jobs
                 WHERE state = 'queued' AND tier = :tier AND lane = :lane AND dispatch_number IS NULL
                   AND NOT quarantined AND next_dispatch_at <= clock_timestamp()) AS waiting
         CROSS JOIN LATERAL (
                SELECT oldest.id, oldest.created_at,
                       row_number() OVER (ORDER BY oldest.created_at, oldest.id) AS turn
                  FROM (SELECT id, created_at FROM jobs
                         WHERE state = 'queued' AND tier = :tier AND lane = :lane AND dispatch_number IS NULL
                           AND NOT quarantined AND account_id = waiting.account_id
                           AND next_dispatch_at <= clock_timestamp()
                         ORDER BY created_at, id LIMIT :limit) AS oldest) AS next
         ORDER BY next.turn, next.created_at LIMIT :limit"""
    parameters = {"tier": tier, "lane": lane, "limit": limit, "redispatch_seconds": redispatch_seconds}
    return _count(db, picked, "jobs.dispatch_number IS NULL", parameters)


def redispatch_lost(
    db: Database, tier: str, lane: str, *, older_than: int | None, limit: int, redispatch_seconds: float
) -> list[Dispatch]:
    """Record new dispatches of due jobs whose message must have been lost.

    `older_than` is the dispatch number at the head of their queue: messages with smaller numbers have left
    it. `None` means that the queue is empty. Age alone is not enough: it would double a long queue.
    """
    picked = """
        SELECT id FROM jobs
         WHERE state = 'queued' AND tier = :tier AND lane = :lane AND dispatch_number IS NOT NULL
           AND next_dispatch_at <= clock_timestamp()
           AND (CAST(:older_than AS bigint) IS NULL OR dispatch_number < :older_than)
         ORDER BY dispatch_number LIMIT :limit"""
    parameters: dict[str, object] = {"tier": tier, "lane": lane, "older_than": older_than, "limit": limit}
    parameters["redispatch_seconds"] = redispatch_seconds
    return _count(db, picked, "jobs.dispatch_number IS NOT NULL", parameters)


def _count(db: Database, picked: str, guard: str, parameters: dict[str, object]) -> list[Dispatch]:
    # Numbers follow the order of the pick; the guard is checked again, since another sweeper may have picked
    # the same rows.
    statement = text(
        f"""
        WITH picked AS ({picked}),
             numbered AS MATERIALIZED (SELECT id, nextval('dispatch_numbers') AS number FROM picked)
        UPDATE jobs SET dispatch_seq = dispatch_seq + 1, dispatch_number = numbered.number,
               dispatched_at = clock_timestamp(),
               next_dispatch_at = clock_timestamp() + make_interval(secs => :redispatch_seconds)
          FROM numbered
         WHERE jobs.id = numbered.id AND jobs.state = 'queued'
           AND jobs.next_dispatch_at <= clock_timestamp() AND {guard}
        RETURNING {_COLUMNS}
        """
    )
    rows = db.run(lambda connection: connection.execute(statement, parameters).all())
    return sorted((Dispatch(**row._mapping) for row in rows), key=lambda dispatch: dispatch.dispatch_number)


def undispatch(db: Database, job_id: str, *, account_id: str | None = None) -> None:
    """Undo a dispatch that could not be published: the job is due again at once."""
    statement = text(
        """UPDATE jobs SET dispatch_number = NULL, next_dispatch_at = clock_timestamp()
            WHERE id = :id AND state = 'queued'"""
    )
    db.run(lambda connection: connection.execute(statement, {"id": job_id}), account_id=account_id)


def forget_all(db: Database) -> int:
    """Forget all dispatches after the broker lost its messages: every queued job is due; returns how many."""
    statement = text(
        """UPDATE jobs SET dispatch_number = NULL, next_dispatch_at = clock_timestamp()
            WHERE id IN (SELECT id FROM jobs WHERE state = 'queued' ORDER BY id FOR UPDATE) RETURNING id"""
    )
    return len(db.run(lambda connection: connection.execute(statement).all(), seconds=LONG_SECONDS))


def waiting(db: Database) -> dict[tuple[str, str], int]:
    """The number of queued jobs per tier and lane, which clients see as the queue depth."""
    query = text(
        "SELECT tier, lane, count(*) AS depth FROM open_jobs WHERE state = 'queued' GROUP BY tier, lane"
    )
    with db.transaction() as connection:
        return {(row.tier, row.lane): row.depth for row in connection.execute(query)}
