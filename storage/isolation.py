"""Quarantined jobs: which one is next, and the `isolated` flag, which attributes a crash to a job.

At most one job of a process has the flag, and only the holder of its lease writes it. It is not a state:
`storage.jobs` reads it when a process has died or lost its lease, and a claim clears it.
"""

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import text

from storage.database import Database
from storage.jobs import HELD, Lease
from storage.paused_tiers import NOT_PAUSED


def next_quarantined(db: Database, tiers: Sequence[str]) -> str | None:
    """The id of the next quarantined job of these tiers: interactive jobs first, then the oldest."""
    query = text(
        f"""SELECT oldest.id
             FROM unnest(CAST(:tiers AS text[])) AS tiers (tier)
            CROSS JOIN unnest(ARRAY['interactive', 'bulk']) AS lanes (lane)
            CROSS JOIN LATERAL (
                   SELECT id, created_at FROM jobs
                    WHERE state = 'queued' AND quarantined AND tier = tiers.tier AND lane = lanes.lane
                      AND next_dispatch_at <= statement_timestamp()
                      AND (deadline_at IS NULL OR deadline_at > statement_timestamp())
                    ORDER BY created_at, id LIMIT 1) AS oldest
            WHERE {NOT_PAUSED.format(tier="tiers.tier")}
            ORDER BY lanes.lane = 'bulk', oldest.created_at, oldest.id LIMIT 1"""
    )
    with db.transaction() as connection:
        return connection.execute(query, {"tiers": list(tiers)}).scalar_one_or_none()


def set_isolated(db: Database, lease: Lease) -> bool:
    """Set the flag of a quarantined job before an image begins; `False` if its lease is lost.

    It clears the flag of the process' other jobs, since only one job can be isolated.
    """
    rows = db.run(lambda connection: connection.execute(_SET, asdict(lease)).all())
    return any(row.id == lease.job_id for row in rows)


def clear_isolated(db: Database, lease: Lease, *, progress: float) -> bool:
    """Clear the flag and write the progress (0-1): a later crash is not attributed to this job."""
    parameters = {**asdict(lease), "progress": progress}
    return bool(db.run(lambda connection: connection.execute(_CLEAR, parameters).all()))


# Locks in id order, as a heartbeat does, and checks the fence again once the row is locked.
_SET = text(
    f"""
    WITH mine AS (
        SELECT id FROM jobs
         WHERE state = 'running' AND (isolated OR id = :job_id)
           AND lease_boot_id = (SELECT lease_boot_id FROM jobs WHERE {HELD})
           AND (id <> :job_id OR {HELD})
         ORDER BY id FOR UPDATE
    )
    UPDATE jobs SET isolated = (jobs.id = :job_id) FROM mine WHERE jobs.id = mine.id RETURNING jobs.id
    """
)

_CLEAR = text(
    f"""UPDATE jobs SET isolated = false, progress = greatest(progress, :progress)
         WHERE {HELD} AND isolated RETURNING id"""
)
