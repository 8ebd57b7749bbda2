"""What a worker learns of steps from the jobs that it runs, published where nothing was measured.

So an installation tells how long jobs take after its first ones, without `calotype profile`. It decides which
numbers of the engine belong to which tier, and when they have changed enough to be told.
"""

import threading
from collections.abc import Sequence
from dataclasses import replace

import structlog

from engine.loading.load import LoadedModels
from engine.policy.profile import Profile, StepCost
from engine.policy.seen_costs import SeenCosts
from storage.database import Database
from storage.errors import StorageError
from storage.profiles import StoredProfile, learn
from tasks.profiles import TierFacts, WorkerProfiles, stored_profile, with_knee

log = structlog.get_logger()

MIN_CHANGE = 0.1
"""What moved by less is not told again."""


class LearnedProfiles:
    """Those of one worker; `publish` is for one thread."""

    def __init__(
        self,
        db: Database,
        seen_costs: SeenCosts,
        tiers: Sequence[TierFacts],
        loaded: LoadedModels,
        profiles: WorkerProfiles,
    ) -> None:
        self._db = db
        self._seen_costs = seen_costs
        self._tiers = tiers
        self._loaded = loaded
        self._profiles = profiles
        self._published: dict[str, StoredProfile] = {}

    def run(self, every_seconds: float, stop: threading.Event) -> None:
        """Publish what is new, again and again, until told to stop."""
        while not stop.wait(every_seconds):
            try:
                self.publish()
            except StorageError as error:
                log.warning("profiles_not_published", error=type(error).__name__)
            except Exception:  # what is unknown to estimates is no reason to tell them nothing ever again
                log.exception("profiles_not_published")

    def publish(self) -> list[StoredProfile]:
        """Tell the others what is new or has changed, and return it."""
        told = []
        for tier in self._tiers:
            found = None if tier.name in self._profiles.found else self._learned(tier)
            if found is None or not _has_changed(self._published.get(tier.name), found):
                continue
            learn(self._db, found, with_knee)
            if tier.name not in self._published:
                log.info("profile_learned", tier=tier.name, device=found.device_kind)
            self._published[tier.name] = found
            told.append(found)
        return told

    def _learned(self, tier: TierFacts) -> StoredProfile | None:
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
        profile = Profile(
            key=self._profiles.keys[tier.name],
            steps=tuple(_step(rows, one * num_latents) for rows, one in costs.step_seconds.items()),
            encode_seconds=costs.encode_seconds,
            decode_seconds=costs.decode_seconds * num_latents,
            num_guided_rows=model.num_guided_rows,
            cached_share=costs.cached_share,
        )
        # The cap is the configured one: that some buckets were not seen says nothing against them.
        return replace(stored_profile(tier, profile), max_rows=limits[tier.max_pixels], is_learned=True)


def _step(num_rows: int, seconds: float) -> StepCost:
    return StepCost(num_rows, seconds, low_seconds=seconds, high_seconds=seconds)


def _has_changed(before: StoredProfile | None, now: StoredProfile) -> bool:
    """Whether there is a number that is new, or has moved by `MIN_CHANGE`."""
    if before is None or dict(before.steps).keys() != dict(now.steps).keys():
        return True
    pairs = zip(_numbers(before), _numbers(now), strict=True)
    return any(abs(new - old) > MIN_CHANGE * old for old, new in pairs)


def _numbers(profile: StoredProfile) -> list[float]:
    ends = [profile.encode_seconds, profile.decode_seconds, profile.cached_share]
    return ends + [seconds for _, seconds in profile.steps]
