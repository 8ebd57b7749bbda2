"""The workload: live workers with their profiles, the jobs that they run, and the jobs that wait for them.

Bounded statements in one transaction read the rows. `web.estimates.eta` computes estimates from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text

from catalogue.profile import Profile
from storage.database import Database
from storage.profiles import profile_of_row

MAX_QUEUED = 200
"""Jobs of a tier and lane that are read; jobs further behind are not estimated."""


@dataclass(frozen=True)
class LiveDevice:
    """A live worker, with the profiles of those of its tiers that have one."""

    boot_id: str
    tiers: tuple[str, ...]
    interactive_slots: int
    bulk_slots: int
    determinism: str
    seconds_since_seen: float
    profiles: Mapping[str, Profile]  # by tier

    def num_slots(self, lane: str) -> int:
        """Jobs of the lane that it runs at once."""
        return self.bulk_slots if lane == "bulk" else self.interactive_slots


@dataclass(frozen=True)
class KnownJob:
    """A job that runs on the live worker of `boot_id`, or that waits: dispatched, or bulk and due."""

    id: str
    tier: str
    lane: str
    num_images: int
    num_steps: int
    width: int
    height: int
    is_guided: bool
    is_strict: bool = False
    guidance_cutoff: float = 1.0
    step_cache: int = 1
    progress: float = 0.0  # as its worker wrote it last
    boot_id: str | None = None
    seconds_since_progress: float = 0.0  # since it was claimed, or progress was written between heartbeats
    seconds_running: float = 0.0  # since it was claimed

    @property
    def num_pixels(self) -> int:
        """Pixels of each of its images."""
        return self.width * self.height


@dataclass(frozen=True)
class Workload:
    """The devices, the jobs that they run, and the jobs that wait, those of a lane in their order.

    Interactive jobs have the order of their dispatch, bulk jobs that of their claims, accounts in turn.
    """

    devices: tuple[LiveDevice, ...]
    running: tuple[KnownJob, ...]
    queued: tuple[KnownJob, ...]
    cut_off: frozenset[tuple[str, str]] = frozenset()  # tiers and lanes with more queued jobs than were read
    pauses: Mapping[str, str] = field(default_factory=dict)  # the reasons of paused tiers


def workload(db: Database, *, alive_seconds: float) -> Workload:
    """The work of every live worker at this moment."""
    with db.transaction() as connection:
        devices = [
            _device(dict(row._mapping)) for row in connection.execute(_DEVICES, {"seconds": alive_seconds})
        ]
        parameters = {
            "boot_ids": [device.boot_id for device in devices],
            "tiers": sorted({tier for device in devices for tier in device.tiers}),
            "limit": MAX_QUEUED + 1,
        }
        rows = connection.execute(_JOBS, parameters).all() if devices else []
        pauses = {row.tier: row.reason for row in connection.execute(_PAUSES)}
    jobs = [KnownJob(**{name: row._mapping[name] for name in KnownJob.__dataclass_fields__}) for row in rows]
    places = {(row.tier, row.lane) for row in rows if row.place > MAX_QUEUED}
    return Workload(
        devices=tuple(devices),
        running=tuple(job for job in jobs if job.boot_id is not None),
        queued=tuple(job for job, row in zip(jobs, rows, strict=True) if 0 < row.place <= MAX_QUEUED),
        cut_off=frozenset(places),
        pauses=pauses,
    )


def _device(row: Mapping[str, Any]) -> LiveDevice:
    profiles = {profile["tier"]: profile_of_row(profile) for profile in row["profiles"]}
    return LiveDevice(**{**row, "tiers": tuple(row["tiers"]), "profiles": profiles})


_DEVICES = text(
    """
    SELECT boot_id, tiers, interactive_slots, bulk_slots, determinism,
           extract(epoch FROM clock_timestamp() - seen_at)::float8 AS seconds_since_seen,
           coalesce((SELECT jsonb_agg(to_jsonb(profiles)) FROM profiles
                      WHERE workers.fingerprints ->> profiles.tier = profiles.fingerprint
                        AND jsonb_exists(workers.tiers, profiles.tier)), '[]') AS profiles
      FROM workers
     WHERE stopped_at IS NULL AND drain_requested_at IS NULL
       AND seen_at > statement_timestamp() - make_interval(secs => :seconds)
     ORDER BY started_at, boot_id
    """
)
_PAUSES = text("SELECT tier, reason FROM paused_tiers")

_JOBS = text(
    """
    WITH known AS (
        SELECT id, 0 AS place, NULL::bigint AS dispatch_number, lease_boot_id AS boot_id, progress,
               extract(epoch FROM clock_timestamp() - greatest(progress_at, started_at))::float8
                   AS seconds_since_progress,
               extract(epoch FROM clock_timestamp() - started_at)::float8 AS seconds_running
          FROM open_jobs WHERE state = 'running' AND lease_boot_id = ANY(:boot_ids)
        UNION ALL
        SELECT oldest.id, row_number() OVER (PARTITION BY tiers.tier ORDER BY dispatch_number),
               dispatch_number, NULL, 0, 0, 0
          FROM unnest(CAST(:tiers AS text[])) AS tiers(tier)
         CROSS JOIN LATERAL (
                SELECT id, dispatch_number FROM open_jobs
                 WHERE state = 'queued' AND dispatch_number IS NOT NULL
                   AND tier = tiers.tier AND lane = 'interactive'
                 ORDER BY dispatch_number LIMIT :limit) AS oldest
        UNION ALL
        SELECT id, place, NULL, NULL, 0, 0, 0
          FROM next_bulk_jobs(CAST(:tiers AS text[]), CAST(:limit AS integer))
    )
    SELECT open_jobs.id, tier, lane, num_images, num_inference_steps AS num_steps, width, height,
           guidance_scale > 1 AS is_guided, strict AS is_strict, guidance_cutoff, step_cache,
           known.progress, known.boot_id, known.seconds_since_progress, known.seconds_running,
           known.place
      FROM known
     CROSS JOIN LATERAL (SELECT * FROM open_jobs WHERE open_jobs.id = known.id LIMIT 1) AS open_jobs
     ORDER BY known.place > 0, known.dispatch_number, known.place, open_jobs.started_at, open_jobs.id
    """
)
