"""The work of all open jobs for devices, by tier and lane, and the profiles that say what it costs.

The work of queued jobs is a sum that triggers keep (migration 0023), that of running jobs is added up from
their rows, which the slots of the fleet limit. It does not know seconds: `web.estimates.device_seconds` does.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sqlalchemy import text

from catalogue.profile import Profile
from storage.database import Database
from storage.profiles import profile_of_row

OpenState = Literal["queued", "running"]


@dataclass(frozen=True)
class Work:
    """Work that is left. Steps are those of each image, multiplied by its pixels.

    `guided_…` are the same for the steps that are run with guidance, which have further rows in most models.
    """

    encodings: int = 0  # images whose prompts have to be encoded
    pixels: int = 0  # to decode
    full_steps: int = 0
    cached_steps: int = 0
    guided_full_steps: int = 0
    guided_cached_steps: int = 0


class DeviceProfile(NamedTuple):
    """A profile, and the number of live workers that it applies to; 0 if it is the last one known."""

    profile: Profile
    num_workers: int


def open_work(db: Database) -> dict[OpenState, dict[tuple[str, str], Work]]:
    """The work of all queued and of all running jobs, by tier and lane; each open job is in one of the two.

    Of a running job the steps that its worker has written as progress are done; its images are decoded last.
    """
    found: dict[OpenState, dict[tuple[str, str], Work]] = {"queued": {}, "running": {}}
    for row in db.execute(_WORK, idempotent=True):
        work = Work(**{name: row._mapping[name] for name in Work.__dataclass_fields__})
        found[row.state][row.tier, row.lane] = work
    return found


def device_profiles(db: Database, *, alive_seconds: float) -> Mapping[str, Sequence[DeviceProfile]]:
    """The profiles of the live workers of each tier, or the one that was published last if they have none.

    A tier that no worker has measured or learned is left out.
    """
    found: dict[str, list[DeviceProfile]] = defaultdict(list)
    for row in db.execute(_PROFILES, {"seconds": alive_seconds}, idempotent=True):
        found[row.profile["tier"]].append(DeviceProfile(profile_of_row(row.profile), row.num_workers))
    return found


_WORK = text(f"SELECT state, tier, lane, {', '.join(Work.__dataclass_fields__)} FROM open_work")
_PROFILES = text(
    """
    WITH live AS (
        SELECT profiles.tier, profiles.fingerprint, count(*) AS num_workers
          FROM workers JOIN profiles ON workers.fingerprints ->> profiles.tier = profiles.fingerprint
                                    AND jsonb_exists(workers.tiers, profiles.tier)
         WHERE stopped_at IS NULL AND seen_at > statement_timestamp() - make_interval(secs => :seconds)
         GROUP BY profiles.tier, profiles.fingerprint
    ), last AS (
        SELECT DISTINCT ON (tier) tier, fingerprint, 0 AS num_workers
          FROM profiles WHERE tier NOT IN (SELECT tier FROM live)
         ORDER BY tier, published_at DESC
    )
    SELECT to_jsonb(profiles) AS profile, num_workers
      FROM (SELECT * FROM live UNION ALL SELECT * FROM last) AS shown
      JOIN profiles USING (tier, fingerprint)
    """
)
