"""Facts about why queued jobs wait: dispatches, jobs ahead, slots, live workers and failed attempts.

One bounded statement serves a whole page of jobs. It reads rows and never the broker;
`web.estimates.waiting_reasons` interprets the facts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text

from catalogue.states import State
from storage.counts import of_batches
from storage.database import Database

MAX_COMPARED = 20
MAX_COUNTED = 1000
"""Counting stops here, so that a long queue costs no more; readers do not need larger numbers."""


@dataclass(frozen=True)
class QueueFacts:
    """A queued job, its lane and its tier at one moment, by the database's clock."""

    tier: str
    lane: str
    is_dispatched: bool
    seconds_until_due: float  # until it may be dispatched, or claimed if bulk; negative once it may
    seconds_since_dispatch: float | None
    num_failures: int
    last_error: str | None  # the error code of the last failed attempt
    quarantined: bool
    num_ahead: (
        int | None
    )  # earlier dispatches of its tier and lane; None: not dispatched, or over MAX_COUNTED
    num_own_ahead: (
        int | None
    )  # if not dispatched: the older undispatched jobs of its account, up to MAX_COUNTED
    num_live_workers: int  # that serve its tier
    num_slots: int  # of its lane, in those workers
    num_busy: int  # jobs of its lane, of any tier, that those workers run
    pause_reason: str | None = None  # if its tier is paused: what the operator wrote, which may be nothing


def queue_facts(
    db: Database, account_id: str, job_ids: Sequence[str], *, alive_seconds: float
) -> dict[str, QueueFacts]:
    """The facts of the queued jobs among these jobs of the account, by job id."""
    parameters = {
        "account_id": account_id,
        "ids": list(job_ids),
        "alive_seconds": alive_seconds,
        "limit": MAX_COUNTED + 1,
    }
    rows = db.execute(_FACTS, parameters, account_id=account_id, idempotent=True)
    return {
        row.id: QueueFacts(**{name: row._mapping[name] for name in QueueFacts.__dataclass_fields__})
        for row in rows
    }


@dataclass(frozen=True)
class NextJob:
    """The queued job that represents all `num_jobs` queued jobs of its batch in its tier."""

    batch_id: str
    tier: str
    job_id: str
    num_jobs: int


def next_jobs(db: Database, account_id: str, batch_ids: Sequence[str]) -> list[NextJob]:
    """One job per batch and tier: the first in the file, jobs without failures before others.

    Of a long batch only the first jobs are compared.
    """
    with db.transaction(account_id=account_id) as connection:
        counts = [one for one in of_batches(connection, batch_ids) if one.by_state[State.QUEUED]]
        parameters = {
            "account_id": account_id,
            "batches": [one.batch_id for one in counts],
            "tiers": [one.tier for one in counts],
            "nums": [one.by_state[State.QUEUED] for one in counts],
            "limit": MAX_COMPARED,
        }
        return [NextJob(**row._mapping) for row in connection.execute(_NEXT_JOBS, parameters)]


def oldest_queued(db: Database) -> dict[tuple[str, str], float]:
    """The age in seconds of the oldest queued job of each tier and lane, over all accounts.

    It is one probe of an index for each of them.
    """
    return {(row.tier, row.lane): row.seconds for row in db.execute(_OLDEST)}


_OLDEST = text(
    """
    WITH RECURSIVE oldest AS (
        (SELECT tier, lane, created_at FROM jobs WHERE state = 'queued'
          ORDER BY tier, lane, created_at LIMIT 1)
        UNION ALL
        SELECT next.tier, next.lane, next.created_at
          FROM oldest
         CROSS JOIN LATERAL (
                SELECT tier, lane, created_at FROM jobs
                 WHERE state = 'queued' AND (tier, lane) > (oldest.tier, oldest.lane)
                 ORDER BY tier, lane, created_at LIMIT 1) AS next
    )
    SELECT tier, lane, extract(epoch FROM clock_timestamp() - created_at)::float8 AS seconds FROM oldest
    """
)
_NEXT_JOBS = text(
    """
    SELECT waiting.batch_id, waiting.tier, next.id AS job_id, waiting.num_jobs
      FROM unnest(CAST(:batches AS text[]), CAST(:tiers AS text[]), CAST(:nums AS int[]))
           AS waiting (batch_id, tier, num_jobs)
     CROSS JOIN LATERAL (
            SELECT id FROM (
                   SELECT id, quarantined, num_failures, batch_line FROM jobs
                    WHERE batch_id = waiting.batch_id AND state = 'queued' AND tier = waiting.tier
                      AND account_id = :account_id
                    ORDER BY created_at, id LIMIT :limit) AS first
             ORDER BY quarantined, num_failures, batch_line LIMIT 1) AS next
     ORDER BY waiting.batch_id, waiting.tier
    """
)
_FACTS = text(
    """
    WITH asked AS (
        SELECT id, tier, lane, account_id, dispatch_number, num_failures, quarantined,
               extract(epoch FROM next_dispatch_at - clock_timestamp())::float8 AS seconds_until_due,
               CASE WHEN dispatch_number IS NOT NULL
                    THEN extract(epoch FROM clock_timestamp() - dispatched_at)::float8
                    END AS seconds_since_dispatch
          FROM jobs WHERE id = ANY(:ids) AND account_id = :account_id AND state = 'queued'
    ), lanes AS (
        SELECT DISTINCT tier, lane FROM asked
    ), live AS (
        SELECT boot_id, tiers, interactive_slots, bulk_slots FROM workers
         WHERE stopped_at IS NULL AND drain_requested_at IS NULL
           AND seen_at > statement_timestamp() - make_interval(secs => :alive_seconds)
    ), serving AS (
        SELECT lanes.tier, lanes.lane, boot_id,
               CASE lanes.lane WHEN 'bulk' THEN bulk_slots ELSE interactive_slots END AS num_slots
          FROM lanes JOIN live ON jsonb_exists(live.tiers, lanes.tier)
    ), capacity AS (
        SELECT tier, lane, count(*) AS num_live_workers, sum(num_slots) AS num_slots
          FROM serving GROUP BY tier, lane
    ), busy AS (
        SELECT serving.tier, serving.lane, count(*) AS num_busy
          FROM serving JOIN open_jobs ON lease_boot_id = boot_id AND open_jobs.lane = serving.lane
         WHERE open_jobs.state = 'running' GROUP BY serving.tier, serving.lane
    ), dispatched_jobs AS (
        SELECT lanes.tier, lanes.lane, oldest.dispatch_number,
               row_number() OVER (PARTITION BY lanes.tier, lanes.lane
                                  ORDER BY oldest.dispatch_number) - 1 AS num_ahead
          FROM lanes
         CROSS JOIN LATERAL (
                SELECT dispatch_number FROM open_jobs
                 WHERE state = 'queued' AND dispatch_number IS NOT NULL
                   AND tier = lanes.tier AND lane = lanes.lane
                 ORDER BY dispatch_number LIMIT :limit) AS oldest
    ), own AS (
        SELECT oldest.id,
               row_number() OVER (PARTITION BY lanes.tier, lanes.lane
                                  ORDER BY oldest.created_at, oldest.id) - 1 AS num_own_ahead
          FROM lanes
         CROSS JOIN LATERAL (
                SELECT id, created_at FROM jobs
                 WHERE state = 'queued' AND dispatch_number IS NULL AND NOT quarantined
                   AND account_id = :account_id
                   AND tier = lanes.tier AND lane = lanes.lane
                 ORDER BY created_at, id LIMIT :limit) AS oldest
    )
    SELECT asked.id, asked.tier, asked.lane, asked.dispatch_number IS NOT NULL AS is_dispatched,
           seconds_until_due, seconds_since_dispatch, num_failures, quarantined, num_ahead, num_own_ahead,
           (SELECT detail FROM job_events
             WHERE job_id = asked.id AND asked.num_failures > 0 AND transition = 'release'
             ORDER BY id DESC LIMIT 1) AS last_error,
           coalesce(num_live_workers, 0) AS num_live_workers,
           coalesce(num_slots, 0) AS num_slots, coalesce(num_busy, 0) AS num_busy,
           (SELECT reason FROM paused_tiers WHERE paused_tiers.tier = asked.tier) AS pause_reason
      FROM asked
      LEFT JOIN capacity USING (tier, lane)
      LEFT JOIN busy USING (tier, lane)
      LEFT JOIN dispatched_jobs ON dispatched_jobs.dispatch_number = asked.dispatch_number
      LEFT JOIN own ON own.id = asked.id
    """
)
