"""Profiles that a worker learns from the jobs that it runs, published for tiers that were not measured.

With them an installation can estimate, after its first jobs, how long jobs take, without `calotype profile`.
Owns which costs of the engine belong to which tier, and when they have changed enough to be published again.
"""

import threading
from collections.abc import Sequence

import structlog

from catalogue.catalogue import Tier
from catalogue.profile import Profile, StepCost
from engine.loading.load import LoadedModels
from engine.policy.seen_costs import SeenCosts
from storage.database import Database
from storage.errors import StorageError
from storage.profiles import TierProfile, learn
from tasks.profiles import WorkerProfiles

log = structlog.get_logger()

MIN_CHANGE = 0.1
"""A profile is published again if one of its numbers has changed by at least this share."""


class LearnedProfiles:
    """The learned profiles of one worker; only one thread may call `publish`."""

    def __init__(
        self,
        db: Database,
        seen_costs: SeenCosts,
        tiers: Sequence[Tier],
        loaded: LoadedModels,
        profiles: WorkerProfiles,
    ) -> None:
        self._db = db
        self._seen_costs = seen_costs
        self._tiers = tiers
        self._loaded = loaded
        self._profiles = profiles
        self._published: dict[str, Profile] = {}  # by tier

    def run(self, every_seconds: float, stop: threading.Event) -> None:
        """Publish new profiles periodically until `stop` is set."""
        while not stop.wait(every_seconds):
            try:
                self.publish()
            except StorageError as error:
                log.warning("profiles_not_published", error=type(error).__name__)
            except Exception:  # one unexpected error must not stop all later profiles
                log.exception("profiles_not_published")

    def publish(self) -> dict[str, Profile]:
        """Publish the profiles that are new or have changed, and return them by tier."""
        published = {}
        for tier in self._tiers:
            found = None if tier.name in self._profiles.found else self._learned(tier)
            if found is None or not _has_changed(self._published.get(tier.name), found):
                continue
            learn(self._db, TierProfile(tier.name, tier.model, found))
            if tier.name not in self._published:
                log.info("profile_learned", tier=tier.name, device=found.key.device_kind)
            self._published[tier.name] = published[tier.name] = found
        return published

    def _learned(self, tier: Tier) -> Profile | None:
        model, limits = self._loaded.models[tier.model], self._loaded.row_limits[tier.model]
        pixels_per_latent = model.pixels_per_latent**2
        smaller = [one.max_pixels for one in self._tiers if one.model == tier.model]
        above = max((pixels for pixels in smaller if pixels < tier.max_pixels), default=0)
        costs = self._seen_costs.costs(
            tier.model, above // pixels_per_latent + 1, tier.max_pixels // pixels_per_latent
        )
        if costs is None:
            return None
        num_latents = tier.default_width * tier.default_height / pixels_per_latent
        return Profile(
            key=self._profiles.keys[tier.name],
            steps=tuple(
                StepCost.of_median(rows, seconds * num_latents)
                for rows, seconds in costs.step_seconds.items()
            ),
            encode_seconds=costs.encode_seconds,
            decode_seconds=costs.decode_seconds * num_latents,
            num_guided_rows=model.num_guided_rows,
            cached_share=costs.cached_share,
            learned_max_rows=limits[tier.max_pixels],
        )


def _has_changed(before: Profile | None, now: Profile) -> bool:
    """Whether there is a number that is new, or has changed by `MIN_CHANGE`."""
    if before is None or [step.num_rows for step in before.steps] != [step.num_rows for step in now.steps]:
        return True
    pairs = zip(_numbers(before), _numbers(now), strict=True)
    return any(abs(new - old) > MIN_CHANGE * old for old, new in pairs)


def _numbers(profile: Profile) -> list[float]:
    others = [profile.encode_seconds, profile.decode_seconds, profile.cached_share]
    return others + [step.seconds for step in profile.steps]
