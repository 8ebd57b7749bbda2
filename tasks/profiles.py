"""Profiles as files, one a tier and fingerprint, and what a worker makes of those that are its own.

Owns the folder and the name of a CPU. A file that cannot be read counts as none; whether a profile is good
is the engine's to say.
"""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import structlog

from engine.loading.load import LoadedModels
from engine.policy.profile import Profile, ProfileKey, Profiles, find_knee
from engine.self_test.measure import Measurement, profile_key
from storage.profiles import StoredProfile

log = structlog.get_logger()


class TierFacts(Protocol):
    """What `calotype.toml` says of a tier."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def model(self) -> str:
        """Its model's name."""

    @property
    def default_width(self) -> int:
        """Pixels."""

    @property
    def default_height(self) -> int:
        """Pixels."""

    @property
    def max_pixels(self) -> int:
        """What it holds."""


class ProfileFolder:
    """A folder of profiles; it need not exist to be read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, tier: str, key: ProfileKey) -> Profile | None:
        """The tier's profile of exactly this key, or nothing."""
        file = self._file(tier, key)
        try:
            return Profile.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("profile_not_read", file=str(file), error=str(error))
            return None

    def write(self, tier: str, profile: Profile) -> Path:
        """Put the profile there, over an older one of the same key; its file."""
        self._path.mkdir(parents=True, exist_ok=True)
        file = self._file(tier, profile.key)
        unfinished = file.with_name(f".{file.name}.tmp")
        document = {"tier": tier, **profile.to_dict()}
        unfinished.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(file)
        return file

    def _file(self, tier: str, key: ProfileKey) -> Path:
        return self._path / f"{tier}.{key.fingerprint}.json"


@dataclass(frozen=True)
class WorkerProfiles:
    """The profiles of one worker: what is right for each tier, and which of these there are."""

    keys: Mapping[str, ProfileKey]  # by tier
    found: Mapping[str, Profile]
    engine: Profiles
    stored: Sequence[StoredProfile]

    @property
    def fingerprints(self) -> dict[str, str]:
        """By tier."""
        return {tier: key.fingerprint for tier, key in self.keys.items()}


def worker_profiles(
    folder: ProfileFolder, tiers: Sequence[TierFacts], loaded: LoadedModels
) -> WorkerProfiles:
    """What the folder holds for these tiers of the loaded models on this very device."""
    keys = {tier.name: key_of(tier, loaded) for tier in tiers}
    found = {tier: profile for tier, key in keys.items() if (profile := folder.read(tier, key))}
    by_class: dict[str, dict[int, Profile]] = {}
    for tier in tiers:
        if tier.name in found:
            by_class.setdefault(tier.model, {})[tier.max_pixels] = found[tier.name]
    pixels = {name: model.pixels_per_latent for name, model in loaded.models.items()}
    stored = [stored_profile(tier, found[tier.name]) for tier in tiers if tier.name in found]
    return WorkerProfiles(keys, found, Profiles(by_class, pixels), stored)


def key_of(tier: TierFacts, loaded: LoadedModels) -> ProfileKey:
    """What the profile of this tier must be of."""
    return profile_key(loaded.models[tier.model], tier.default_width, tier.default_height, cpu_name())


def measure_tier(
    tier: TierFacts,
    loaded: LoadedModels,
    *,
    scheduler: str,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Profile:
    """Measure the tier at its default size, up to the rows that configuration and self-test allow."""
    measurement = Measurement(
        loaded.models[tier.model],
        width=tier.default_width,
        height=tier.default_height,
        scheduler=scheduler,
        clock=clock,
    )
    max_rows = loaded.row_limits[tier.model][tier.max_pixels]
    return measurement.profile(max_rows, seconds=seconds, device_name=cpu_name())


def stored_profile(tier: TierFacts, profile: Profile) -> StoredProfile:
    """The profile as Postgres holds it."""
    costs = ("encode_seconds", "decode_seconds", "num_guided_rows", "cached_share")
    found = ("knee_rows", "max_rows", "is_worth_batching")
    return StoredProfile(
        tier=tier.name,
        fingerprint=profile.key.fingerprint,
        model=tier.model,
        device_kind=profile.key.device_kind,
        width=profile.key.width,
        height=profile.key.height,
        steps=tuple((step.num_rows, step.seconds) for step in profile.steps),
        **{name: getattr(profile, name) for name in (*costs, *found)},
    )


def with_knee(profile: StoredProfile) -> StoredProfile:
    """The profile with the knee of its steps; its cap stays."""
    knee_rows = find_knee([(rows, rows / seconds) for rows, seconds in profile.steps])
    return replace(profile, knee_rows=knee_rows, is_worth_batching=knee_rows > profile.steps[0][0])


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What this machine's processor calls itself, or its architecture where it does not say."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
