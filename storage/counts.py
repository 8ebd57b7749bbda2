"""The maintained counts: queued jobs by tier and lane, jobs of batches by state, and pending deliveries.

Triggers on the tables write what each statement changed as one row, in the statement's transaction (migration
0020), so that counts are exact whatever changes a job, and no transaction waits for another one's count.
Readers add these rows to sums. `fold` moves them into the sums, so that there are few, and those of
`storage.usage` too. It does not know why a job changed, nor the work of queued jobs: a trigger moves that
with the counts (migration 0023).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from catalogue.states import State
from storage.database import Database
from storage.usage import FOLD_USAGE

FOLDED_AT_ONCE = 2_000


@dataclass(frozen=True)
class BatchCounts:
    """The jobs of a batch in one tier by state, and when the last of those that ended did so."""

    batch_id: str
    tier: str
    by_state: dict[str, int]
    finished_at: datetime | None


def fold(db: Database, *, limit: int = FOLDED_AT_ONCE) -> int:
    """Move up to `limit` changes of each kind into the sums; returns how many.

    One process at a time does so, so that sums are changed in one order only; the others return 0.
    """

    def work(connection: Connection) -> int:
        if not connection.execute(_TAKE_TURN).scalar_one():
            return 0
        parameters = {"limit": limit}
        statements = (_FOLD_JOBS, _FOLD_DELIVERIES, FOLD_USAGE)
        return sum(connection.execute(statement, parameters).scalar_one() for statement in statements)

    return db.run(work)


def of_batches(connection: Connection, batch_ids: Sequence[str]) -> list[BatchCounts]:
    """The counts of those of these batches that the connection's role sees, by tier."""
    return [
        BatchCounts(
            row.batch_id, row.tier, {state: row._mapping[state] for state in _STATES}, row.finished_at
        )
        for row in connection.execute(_OF_BATCHES, {"ids": list(batch_ids)})
    ]


_TAKE_TURN = text("SELECT pg_try_advisory_xact_lock(3, 0)")  # the first number is the kind of the lock
_STATES = [state.value for state in State]
_FOLD_JOBS = text(
    f"""
    WITH folded AS (
        DELETE FROM job_count_changes
         WHERE id = ANY(ARRAY(SELECT id FROM job_count_changes ORDER BY id LIMIT :limit))
        RETURNING tier, lane, account_id, batch_id, {", ".join(_STATES)}, finished_at
    ), queues AS (
        INSERT INTO queue_counts AS known (tier, lane, queued)
        SELECT tier, lane, sum(queued) FROM folded GROUP BY tier, lane HAVING sum(queued) <> 0
        ON CONFLICT (tier, lane) DO UPDATE SET queued = known.queued + excluded.queued
    ), of_batches AS (
        INSERT INTO batch_counts AS known (batch_id, tier, account_id, {", ".join(_STATES)}, finished_at)
        SELECT batch_id, tier, account_id, {", ".join(f"sum({state})" for state in _STATES)}, max(finished_at)
          FROM folded WHERE batch_id IS NOT NULL GROUP BY batch_id, tier, account_id
        ON CONFLICT (batch_id, tier) DO UPDATE
           SET {", ".join(f"{state} = known.{state} + excluded.{state}" for state in _STATES)},
               finished_at = greatest(known.finished_at, excluded.finished_at)
    )
    SELECT count(*) FROM folded
    """
)
_FOLD_DELIVERIES = text(
    """
    WITH folded AS (
        DELETE FROM delivery_count_changes
         WHERE id = ANY(ARRAY(SELECT id FROM delivery_count_changes ORDER BY id LIMIT :limit))
        RETURNING pending
    ), summed AS (
        UPDATE delivery_counts SET pending = delivery_counts.pending + folded_sum.pending
          FROM (SELECT sum(pending) AS pending FROM folded) AS folded_sum WHERE folded_sum.pending <> 0
    )
    SELECT count(*) FROM folded
    """
)
_OF_BATCHES = text(
    f"""
    SELECT batch_id, tier, {", ".join(f"sum({state})::bigint AS {state}" for state in _STATES)},
           max(finished_at) AS finished_at
      FROM (SELECT batch_id, tier, {", ".join(_STATES)}, finished_at FROM batch_counts
             WHERE batch_id = ANY(:ids)
            UNION ALL
            SELECT batch_id, tier, {", ".join(_STATES)}, finished_at FROM job_count_changes
             WHERE batch_id = ANY(:ids)) AS counts
     GROUP BY batch_id, tier
    """
)
