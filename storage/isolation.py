"""Quarantine: which is taken up next, and the mark `solo` on a row, which says whose a crash would be.

Owns that at most one job of a process bears the mark, and that only the holder of a lease writes it. It is no
change of state: `storage.jobs.reap` reads it when a lease has run out, and a claim begins without it.
"""

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import text

from storage.database import Database
from storage.jobs import HELD, Lease


def next_quarantined(db: Database, tiers: Sequence[str]) -> str | None:
    """The suspect of these tiers to be taken up next: interactive ones first, then by age."""
    query = text(
        """SELECT id FROM jobs
            WHERE state = 'queued' AND quarantined AND tier = ANY(:tiers)
              AND next_dispatch_at <= clock_timestamp()
              AND (deadline_at IS NULL OR deadline_at > clock_timestamp())
            ORDER BY lane = 'bulk', created_at, id LIMIT 1"""
    )
    with db.transaction() as connection:
        return connection.execute(query, {"tiers": list(tiers)}).scalar_one_or_none()


def mark_isolated(db: Database, lease: Lease) -> bool:
    """Note, before it begins, that a suspect runs alone; `False`, and no mark, when the lease was lost.

    Only one job of a process is ever alone, so this takes the mark off its others.
    """
    rows = db.run(lambda connection: connection.execute(_MARK, asdict(lease)).all())
    return any(row.id == lease.job_id for row in rows)


def unmark_isolated(db: Database, lease: Lease, *, progress: float) -> bool:
    """Note that it runs alone no longer, and how far it is (0-1): a crash from now on is not its own."""
    parameters = {**asdict(lease), "progress": progress}
    return bool(db.run(lambda connection: connection.execute(_UNMARK, parameters).all()))


# Locks in id order, as a heartbeat does, and asks for the fence once the row is locked.
_MARK = text(
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

_UNMARK = text(
    f"""UPDATE jobs SET isolated = false, progress = greatest(progress, :progress)
         WHERE {HELD} AND isolated RETURNING id"""
)
