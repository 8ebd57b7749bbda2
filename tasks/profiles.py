"""Profiles as files, one for each tier and fingerprint, and the ones that a worker uses.

Owns the folder and the name of the CPU. It does not know how a profile is measured, nor which rules read its
numbers.
"""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from tenacity import Retrying, retry_if_exception_type, wait_random_exponential

from catalogue.accounting import DevicePrice, Prices
from catalogue.catalogue import Tier
from catalogue.profile import Profile, ProfileKey
from engine.loading.load import LoadedModels
from engine.policy.profiles import EngineProfiles
from engine.self_test.measurement import Measurement, profile_key
from storage.database import Database
from storage.errors import Unavailable
from storage.profiles import TierProfile, publish

log = structlog.get_logger()


class ProfileFolder:
    """A folder of profiles; it need not exist to be read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, tier: str, key: ProfileKey) -> Profile | None:
        """The tier's profile of exactly this key; None if there is no file, or none that can be read."""
        file = self._file(tier, key.fingerprint)
        try:
            return Profile.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("profile_not_read", file=str(file), error=str(error))
            return None

    def write(self, tier: str, profile: Profile) -> Path:
        """Write the profile over an older one of the same key, and return its file."""
        self._path.mkdir(parents=True, exist_ok=True)
        file = self._file(tier, profile.key.fingerprint)
        unfinished = file.with_name(f".{file.name}.tmp")
        document = {"tier": tier, **profile.to_dict()}
        unfinished.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(file)
        return file

    def _file(self, tier: str, fingerprint: str) -> Path:
        return self._path / f"{tier}.{fingerprint}.json"


@dataclass(frozen=True)
class WorkerProfiles:
    """The profiles of one worker: the keys that they must have, and those that were found."""

    keys: Mapping[str, ProfileKey]  # by tier
    found: Mapping[str, Profile]  # by tier
    engine: EngineProfiles
    published: Sequence[TierProfile]

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of the keys, by tier."""
        return {tier: key.fingerprint for tier, key in self.keys.items()}

    def price_of_device(self, prices: Prices) -> DevicePrice | None:
        """The price of the worker's device, shared by its tiers. It warns if only other devices have one."""
        key = next(iter(self.keys.values()))
        price = prices.of(key.device_name, is_cpu=key.num_threads > 0)
        if price is None and prices.per_hour:
            log.warning("device_without_price", device=key.device_name)
        return price

    def publish(self, db: Database) -> None:
        """Log which profiles are used, and publish them as soon as Postgres answers. Raises nothing."""
        for tier, key in self.keys.items():
            profile = self.found.get(tier)
            if profile is None:
                log.info("profile_not_found", tier=tier, device=key.device_kind, fingerprint=key.fingerprint)
            else:
                log.info(
                    "profile_used",
                    tier=tier,
                    max_rows=profile.max_rows,
                    is_worth_batching=profile.is_worth_batching,
                )
        tries = Retrying(
            retry=retry_if_exception_type(Unavailable), wait=wait_random_exponential(multiplier=0.5, max=30)
        )
        try:
            tries(publish, db, self.published)
        except Exception:  # learned profiles can still be published
            log.exception("profiles_not_published")


def worker_profiles(folder: ProfileFolder, tiers: Sequence[Tier], loaded: LoadedModels) -> WorkerProfiles:
    """The profiles in the folder for these tiers of the loaded models on exactly this device."""
    keys = {tier.name: key_of(tier, loaded) for tier in tiers}
    found = {tier: profile for tier, key in keys.items() if (profile := folder.read(tier, key))}
    by_class: dict[str, dict[int, Profile]] = {}
    for tier in tiers:
        if tier.name in found:
            by_class.setdefault(tier.model, {})[tier.max_pixels] = found[tier.name]
    pixels = {name: model.pixels_per_latent for name, model in loaded.models.items()}
    published = [TierProfile(tier.name, tier.model, found[tier.name]) for tier in tiers if tier.name in found]
    return WorkerProfiles(keys, found, EngineProfiles(by_class, pixels), published)


def key_of(tier: Tier, loaded: LoadedModels) -> ProfileKey:
    """The key that a profile of this tier must have here."""
    return profile_key(loaded.models[tier.model], tier.default_width, tier.default_height, cpu_name())


def measure_tier(
    tier: Tier,
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


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The model name of this machine's processor, or its architecture if it has none."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
