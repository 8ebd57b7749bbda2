"""Which kinds of repair the rows need now: one statement of index probes that the sweeper sends each turn.

The statements that repair keep their own guards, so that what is read here may be out of date by then. It
does not know what is done about it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from storage.database import Database


@dataclass(frozen=True)
class DueWork:
    """What there is to do, at most too much of it; the tuples are of tiers."""

    has_expired_leases: bool
    has_passed_deadlines: bool
    has_count_changes: bool
    has_receivers: bool  # with failures; most need nothing yet
    has_deliveries: bool  # pending and not held; most are not due yet
    has_expired_sessions: bool
    undispatched: tuple[str, ...]  # with interactive jobs to dispatch
    dispatched: tuple[str, ...]  # with dispatched interactive jobs, whose message may be lost
    dispatched_bulk: tuple[str, ...]  # with bulk jobs that a sweeper of an older version dispatched


def due_work(db: Database, tiers: Collection[str]) -> DueWork:
    """What there is to do for jobs of these tiers, and for everything that has no tier."""
    (row,) = db.execute(_DUE_WORK, {"tiers": list(tiers)}, idempotent=True)
    found: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in row._mapping.items()
    }
    return DueWork(**found)


def _tiers_with(jobs: str, order: str) -> str:
    return f"""ARRAY(SELECT tier FROM unnest(CAST(:tiers AS text[])) AS of_tier (tier)
                      WHERE (SELECT id FROM jobs WHERE state = 'queued' AND tier = of_tier.tier AND {jobs}
                              ORDER BY {order} LIMIT 1) IS NOT NULL)"""


_UNDISPATCHED = """lane = 'interactive' AND dispatch_number IS NULL AND NOT quarantined
                              AND next_dispatch_at <= statement_timestamp()"""
# An order makes each probe use its index whatever the statistics say; EXISTS would ignore the order.
_DUE_WORK = text(
    f"""
    SELECT (SELECT id FROM jobs WHERE state = 'running' AND lease_expires_at < statement_timestamp()
             LIMIT 1) IS NOT NULL AS has_expired_leases,
           (SELECT id FROM jobs WHERE state = 'queued' AND deadline_at <= statement_timestamp()
             ORDER BY deadline_at LIMIT 1) IS NOT NULL AS has_passed_deadlines,
           (SELECT id FROM job_count_changes ORDER BY id LIMIT 1) IS NOT NULL
           OR (SELECT id FROM delivery_count_changes ORDER BY id LIMIT 1) IS NOT NULL AS has_count_changes,
           (SELECT id FROM webhook_receivers ORDER BY last_failed_at LIMIT 1) IS NOT NULL AS has_receivers,
           (SELECT id FROM webhook_deliveries WHERE state = 'pending' AND held_at IS NULL
             ORDER BY account_id LIMIT 1) IS NOT NULL AS has_deliveries,
           (SELECT digest FROM sessions WHERE expires_at < statement_timestamp()
             ORDER BY expires_at LIMIT 1) IS NOT NULL AS has_expired_sessions,
           {_tiers_with(_UNDISPATCHED, "account_id")} AS undispatched,
           {_tiers_with("lane = 'interactive' AND dispatch_number IS NOT NULL", "dispatch_number")}
           AS dispatched,
           {_tiers_with("lane = 'bulk' AND dispatch_number IS NOT NULL", "dispatch_number")}
           AS dispatched_bulk
    """
)
