"""Selects the queued jobs to dispatch, and records every dispatch.

Owns the dispatch columns: a dispatch is counted and numbered here, in a committed transaction, before it is
published. It does not know the broker: callers pass what they read there.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Row, text

from storage.database import Database
from storage.jobs import Claim

FORGOTTEN_AT_ONCE = 500
MAX_NOT_DUE = 500
MAX_BACKOFF = 4
"""A dispatch is checked later the more dispatches of the job led to no claim: twice as late each time, up to
so many times `redispatch_seconds`. Not later: `redispatch_lost` looks at dispatches in the order of their
numbers, and many that are not due hide those behind them."""


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
_OF_NEW_JOB = text(
    f"SELECT {_COLUMNS} FROM jobs WHERE id = :id AND state = 'queued' AND dispatch_number IS NOT NULL"
)


def of_claim(claim: Claim) -> Dispatch:
    """What a message for a claimed job would say; it counts attempts, since such a job was not dispatched."""
    job, parameters = claim.job, claim.job.parameters
    return Dispatch(
        job_id=job.id,
        tier=job.tier,
        lane=job.lane,
        dispatch_seq=claim.lease.attempt,
        dispatch_number=0,
        num_steps=parameters.num_inference_steps,
        width=parameters.width,
        height=parameters.height,
        num_images=parameters.num_images,
    )


def of_new_job(db: Database, job_id: str, *, account_id: str | None = None) -> Dispatch | None:
    """The dispatch that `storage.submissions` recorded for a new interactive job, or `None`."""
    rows = db.execute(_OF_NEW_JOB, {"id": job_id}, account_id=account_id, idempotent=True)
    return Dispatch(**rows[0]._mapping) if rows else None


@dataclass(frozen=True)
class Feed:
    """New dispatches, and the account behind which the turns of the next feed begin."""

    dispatches: list[Dispatch]
    last_account: str


def feed(
    db: Database, tier: str, lane: str, limit: int, *, redispatch_seconds: float, after_account: str = ""
) -> Feed:
    """Record dispatches of up to `limit` due jobs that have none, accounts in turn, oldest jobs first.

    The turns begin behind `after_account`. No account gets more than its share of `limit`, so that few jobs
    are read that are not dispatched. It leaves out quarantined jobs, which workers find by themselves.
    """
    parameters: dict[str, object] = {"tier": tier, "lane": lane, "limit": limit}
    parameters |= {"redispatch_seconds": redispatch_seconds, "after_account": after_account}
    rows = _count(db, _NEXT, "jobs.dispatch_number IS NULL", parameters)
    return Feed(_dispatches(rows), last_account(after_account, [row.account_id for row in rows]))


def last_account(after_account: str, accounts: Iterable[str]) -> str:
    """The account whose turn was the last one; `accounts` has one of each job, and turns began behind one."""
    turns = Counter(accounts)
    ranks = {account: (count, account <= after_account, account) for account, count in turns.items()}
    return max(ranks, key=ranks.__getitem__, default=after_account)


def redispatch_lost(
    db: Database, tier: str, lane: str, *, older_than: int | None, limit: int, redispatch_seconds: float
) -> list[Dispatch]:
    """Record new dispatches of due jobs whose message must have been lost.

    `older_than` is the dispatch number at the head of their queue: messages with smaller numbers have left
    it. `None` means that the queue is empty. Age alone is not enough: it would double a long queue.
    """
    # Jobs become due in the order of their dispatch, but for those whose messages were lost before.
    picked = f"""
        SELECT id FROM (
               SELECT id, next_dispatch_at, dispatch_number FROM jobs
                WHERE state = 'queued' AND tier = :tier AND lane = :lane AND dispatch_number IS NOT NULL
                  AND (CAST(:older_than AS bigint) IS NULL OR dispatch_number < :older_than)
                ORDER BY dispatch_number LIMIT :limit + {MAX_NOT_DUE}) AS first
         WHERE next_dispatch_at <= statement_timestamp()
         ORDER BY dispatch_number LIMIT :limit"""
    parameters: dict[str, object] = {"tier": tier, "lane": lane, "older_than": older_than, "limit": limit}
    parameters["redispatch_seconds"] = redispatch_seconds
    return _dispatches(_count(db, picked, "jobs.dispatch_number IS NOT NULL", parameters))


def _count(db: Database, picked: str, guard: str, parameters: dict[str, object]) -> Sequence[Row[Any]]:
    # Numbers follow the order of the pick; the guard is checked again, since another sweeper may have picked
    # the same rows.
    statement = text(
        f"""
        WITH picked AS ({picked}),
             numbered AS MATERIALIZED (SELECT id, nextval('dispatch_numbers') AS number FROM picked)
        UPDATE jobs SET dispatch_seq = dispatch_seq + 1, dispatch_number = numbered.number,
               dispatched_at = clock_timestamp(),
               next_dispatch_at = clock_timestamp() + make_interval(secs => :redispatch_seconds
                   * least(2 ^ greatest(jobs.dispatch_seq - jobs.attempt, 0), {MAX_BACKOFF}))
          FROM numbered
         WHERE jobs.id = numbered.id AND jobs.state = 'queued'
           AND jobs.next_dispatch_at <= statement_timestamp() AND {guard}
        RETURNING {_COLUMNS}, account_id
        """
    )
    return db.run(lambda connection: connection.execute(statement, parameters).all())


def _dispatches(rows: Iterable[Row[Any]]) -> list[Dispatch]:
    columns = [column.name for column in fields(Dispatch)]
    found = (Dispatch(**{column: row._mapping[column] for column in columns}) for row in rows)
    return sorted(found, key=lambda dispatch: dispatch.dispatch_number)


def undispatch(db: Database, job_id: str, *, account_id: str | None = None) -> None:
    """Undo a dispatch that could not be published: it does not count, and the job is due again at once."""
    statement = text(
        """UPDATE jobs SET dispatch_number = NULL, next_dispatch_at = clock_timestamp(),
                  dispatch_seq = greatest(dispatch_seq - 1, 0)
            WHERE id = :id AND state = 'queued'"""
    )
    db.run(lambda connection: connection.execute(statement, {"id": job_id}), account_id=account_id)


def undispatch_bulk(db: Database, tier: str) -> int:
    """Undo dispatches of bulk jobs, which a sweeper of an older version made, so that workers claim them."""
    statement = text(
        """UPDATE jobs SET dispatch_number = NULL, next_dispatch_at = clock_timestamp()
            WHERE id IN (SELECT id FROM jobs
                          WHERE state = 'queued' AND tier = :tier AND lane = 'bulk'
                            AND dispatch_number IS NOT NULL
                          ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED) RETURNING id"""
    )
    return len(db.execute(statement, {"tier": tier, "limit": FORGOTTEN_AT_ONCE}))


def forget_all(db: Database) -> int:
    """Forget all dispatches after the broker lost its messages, so that their jobs are due; returns how many.

    It does so in parts, each in a transaction of its own. If one fails, the next call forgets the rest.
    """
    # Dispatches that are recorded from now on are sent to the broker that has lost its messages.
    until = db.execute(text("SELECT nextval('dispatch_numbers') AS number"))[0].number
    num_forgotten: int = 0
    last: tuple[str, str, int] = ("", "", 0)
    while True:
        parameters = dict(zip(("tier", "lane", "number"), last, strict=True))
        rows = db.execute(_FORGET, {**parameters, "until": until, "limit": FORGOTTEN_AT_ONCE})
        num_forgotten += sum(row.was_forgotten for row in rows)
        if len(rows) < FORGOTTEN_AT_ONCE:
            return num_forgotten
        last = max((row.tier, row.lane, row.dispatch_number) for row in rows)


def waiting(db: Database) -> dict[tuple[str, str], int]:
    """The number of queued jobs per tier and lane, which clients see as the queue depth."""
    rows = db.execute(text("SELECT tier, lane, queued FROM queue_depths"))
    return {(row.tier, row.lane): row.queued for row in rows}


# Each part begins where the one before it ended, and reads no index entry of a row that it has changed.
_FORGET = text(
    """
    WITH picked AS (
        SELECT id, tier, lane, dispatch_number FROM jobs
         WHERE state = 'queued' AND dispatch_number IS NOT NULL AND dispatch_number < :until
           AND (tier, lane, dispatch_number) > (:tier, :lane, CAST(:number AS bigint))
         ORDER BY tier, lane, dispatch_number LIMIT :limit
    ), forgotten AS (
        UPDATE jobs SET dispatch_number = NULL, next_dispatch_at = clock_timestamp()
         WHERE id = ANY(ARRAY(SELECT id FROM jobs WHERE id = ANY(ARRAY(SELECT id FROM picked))
                               ORDER BY id FOR NO KEY UPDATE))
           AND state = 'queued' AND dispatch_number < :until
        RETURNING id
    )
    SELECT tier, lane, dispatch_number, forgotten.id IS NOT NULL AS was_forgotten
      FROM picked LEFT JOIN forgotten USING (id)
    """
)

_UNDISPATCHED = """state = 'queued' AND tier = :tier AND lane = :lane AND dispatch_number IS NULL
                    AND NOT quarantined AND next_dispatch_at <= statement_timestamp()"""
# Accounts with such jobs, by a loose index scan (one probe per account), `:limit` behind
# `:after_account` and as many up to it.
_NEXT = f"""
        WITH RECURSIVE behind AS (
            (SELECT account_id, 1 AS position FROM jobs
              WHERE {_UNDISPATCHED} AND account_id > :after_account ORDER BY account_id LIMIT 1)
            UNION ALL
            SELECT next.account_id, behind.position + 1
              FROM behind
             CROSS JOIN LATERAL (
                    SELECT account_id FROM jobs WHERE {_UNDISPATCHED} AND account_id > behind.account_id
                     ORDER BY account_id LIMIT 1) AS next
             WHERE behind.position < :limit
        ), before AS (
            (SELECT account_id, 1 AS position FROM jobs
              WHERE {_UNDISPATCHED} AND account_id <= :after_account ORDER BY account_id LIMIT 1)
            UNION ALL
            SELECT next.account_id, before.position + 1
              FROM before
             CROSS JOIN LATERAL (
                    SELECT account_id FROM jobs WHERE {_UNDISPATCHED} AND account_id > before.account_id
                       AND account_id <= :after_account ORDER BY account_id LIMIT 1) AS next
             WHERE before.position < :limit
        ), waiting AS (
            SELECT account_id FROM (SELECT account_id, false AS is_before, position FROM behind
                                    UNION ALL SELECT account_id, true, position FROM before) AS either
             ORDER BY is_before, position LIMIT :limit
        ), share AS (
            SELECT ceil(:limit / greatest(count(*), 1)::float8)::int AS num_jobs FROM waiting
        )
        SELECT next.id
          FROM waiting CROSS JOIN share
         CROSS JOIN LATERAL (
                SELECT oldest.id, oldest.created_at,
                       row_number() OVER (ORDER BY oldest.created_at, oldest.id) AS turn
                  FROM (SELECT id, created_at FROM jobs
                         WHERE {_UNDISPATCHED} AND account_id = waiting.account_id
                         ORDER BY created_at, id LIMIT share.num_jobs) AS oldest) AS next
         ORDER BY next.turn, next.created_at LIMIT :limit"""
