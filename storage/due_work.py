"""Which kinds of repair may be due: one statement that the sweeper sends each turn.

The statements that repair check their conditions again, since rows may have changed since this was read. This
module does not know the repairs.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from storage.database import Database
from storage.paused_tiers import NOT_PAUSED


@dataclass(frozen=True)
class DueWork:
    """The kinds of work that may be due; the tuples contain names of tiers."""

    has_expired_leases: bool
    has_silent_processes: bool  # that may have crashed
    has_passed_deadlines: bool
    has_count_changes: bool
    has_due_receivers: bool
    has_deliveries: bool  # that are pending and not held; they may be due later
    has_expired_sessions: bool
    # Of tiers that are not paused:
    undispatched: tuple[str, ...]  # with interactive jobs to dispatch
    dispatched: tuple[str, ...]  # with dispatched interactive jobs, whose messages may be lost
    dispatched_bulk: tuple[str, ...]  # with bulk jobs that a sweeper of an older version dispatched


def due_work(
    db: Database, tiers: Collection[str], *, webhook_keep_seconds: float, silent_seconds: float
) -> DueWork:
    """What may be due for jobs of these tiers, and all that has no tier.

    `webhook_keep_seconds` is that of `receivers.fail_held` and `receivers.forget`, `silent_seconds` that of
    `possible_crashes.settle_silent`. Raises `Unavailable`, also if the server is read-only.
    """
    parameters = {
        "tiers": list(tiers),
        "keep_seconds": webhook_keep_seconds,
        "silent_seconds": silent_seconds,
    }
    (row,) = db.execute(_DUE_WORK, parameters, idempotent=True)
    found: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in row._mapping.items()
    }
    return DueWork(**found)


def all_work(tiers: Collection[str]) -> DueWork:
    """Every kind of work, for a caller that could not read what is due."""
    every = tuple(tiers)
    return DueWork(True, True, True, True, True, True, True, every, every, every)


def _tiers_with(jobs: str, order: str) -> str:
    return f"""ARRAY(SELECT tier FROM unnest(CAST(:tiers AS text[])) AS of_tier (tier)
                      WHERE {NOT_PAUSED.format(tier="of_tier.tier")}
                        AND (SELECT id FROM jobs WHERE state = 'queued' AND tier = of_tier.tier AND {jobs}
                              ORDER BY {order} LIMIT 1) IS NOT NULL)"""


_UNDISPATCHED = """lane = 'interactive' AND dispatch_number IS NULL AND NOT quarantined
                              AND next_dispatch_at <= statement_timestamp()"""
_KEPT = "statement_timestamp() - make_interval(secs => :keep_seconds)"
# An order makes each probe use its index whatever the statistics say; EXISTS would ignore the order. The lock
# of the first makes a read-only server refuse this, as it refuses the statements for which this stands.
_DUE_WORK = text(
    f"""
    SELECT (SELECT id FROM jobs WHERE state = 'running' AND lease_expires_at < statement_timestamp()
             ORDER BY lease_boot_id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) IS NOT NULL AS has_expired_leases,
           (SELECT job_id FROM possible_crashes
             WHERE lost_at < statement_timestamp() - make_interval(secs => :silent_seconds)
             ORDER BY lost_at LIMIT 1) IS NOT NULL AS has_silent_processes,
           (SELECT id FROM jobs WHERE state = 'queued' AND deadline_at <= statement_timestamp()
             ORDER BY deadline_at LIMIT 1) IS NOT NULL AS has_passed_deadlines,
           (SELECT id FROM job_count_changes ORDER BY id LIMIT 1) IS NOT NULL
           OR (SELECT id FROM delivery_count_changes ORDER BY id LIMIT 1) IS NOT NULL
           OR (SELECT id FROM usage_changes ORDER BY id LIMIT 1) IS NOT NULL AS has_count_changes,
           (SELECT id FROM webhook_receivers WHERE state = 'recovering' ORDER BY id LIMIT 1) IS NOT NULL
           OR (SELECT id FROM webhook_receivers
                WHERE state = 'failing' AND next_probe_at <= statement_timestamp()
                ORDER BY next_probe_at LIMIT 1) IS NOT NULL
           OR (SELECT id FROM webhook_receivers WHERE state = 'paused' AND paused_at < {_KEPT}
                ORDER BY paused_at LIMIT 1) IS NOT NULL
           OR (SELECT id FROM webhook_receivers WHERE last_failed_at < {_KEPT}
                ORDER BY last_failed_at LIMIT 1) IS NOT NULL AS has_due_receivers,
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
