"""Tiers of which no job is claimed until an operator resumes them.

Jobs of a paused tier are accepted and wait; those that run go on. It does not know who claims, nor who waits.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from storage.database import Database

NOT_PAUSED = "{tier} <> ALL(ARRAY(SELECT paused_tiers.tier FROM paused_tiers))"
"""A condition of every claim; the array is read once in a statement."""


@dataclass(frozen=True)
class Pause:
    """A paused tier; `reason` is what its operator wrote, for those who wait."""

    tier: str
    reason: str
    paused_at: datetime


def pause(db: Database, tiers: Collection[str], *, reason: str = "") -> None:
    """Pause these tiers; one that is paused already keeps its instant and gets this reason."""
    db.execute(_PAUSE, {"tiers": sorted(tiers), "reason": reason}, idempotent=True)


def resume(db: Database, tiers: Collection[str]) -> set[str]:
    """Let jobs of these tiers be claimed again; returns those that were paused."""
    return {row.tier for row in db.execute(_RESUME, {"tiers": sorted(tiers)})}


def paused_tiers(db: Database) -> dict[str, Pause]:
    """The paused tiers by name."""
    return {
        row.tier: Pause(row.tier, row.reason, row.paused_at) for row in db.execute(_PAUSED, idempotent=True)
    }


def unpaused(tiers: Iterable[str], paused: Collection[str]) -> list[str]:
    """The tiers that are not among the paused ones, in their order."""
    return [tier for tier in tiers if tier not in paused]


_PAUSE = text(
    """INSERT INTO paused_tiers (tier, reason)
       SELECT tier, :reason FROM unnest(CAST(:tiers AS text[])) AS tier
       ON CONFLICT (tier) DO UPDATE SET reason = excluded.reason"""
)
_RESUME = text("DELETE FROM paused_tiers WHERE tier = ANY(:tiers) RETURNING tier")
_PAUSED = text("SELECT tier, reason, paused_at FROM paused_tiers ORDER BY tier")
