"""The profiles that a plan is computed from: measured here, or published by others with their source.

Owns the published step times (`published.json`) and how a profile is named. It does not know how a profile
is measured, nor what follows from it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from catalogue.accounting import Prices
from catalogue.profile import Profile, ProfileKey, PublishedKey, StepCost

PUBLISHED = Path(__file__).with_name("published.json")


class PlanError(Exception):
    """A plan cannot be made of what was given; the message names the option or entry and the limit."""


@dataclass(frozen=True)
class PlanProfile:
    """A profile, where it is from, and what was assumed where the source says nothing."""

    name: str
    profile: Profile
    source: str
    model: str = ""
    url: str = ""
    date: str = ""
    assumed: tuple[str, ...] = ()
    is_published: bool = False

    @property
    def device(self) -> str:
        """The kind of device in words."""
        return self.profile.key.device_kind

    @property
    def origin(self) -> str:
        """`published` or `measured`, as every table shows it."""
        return "published" if self.is_published else "measured"

    def price_per_hour(self, prices: Prices) -> float | None:
        """The price of its device, looked up as a worker does; None without one."""
        key = self.profile.key
        if isinstance(key, ProfileKey):
            price = prices.of(key.device_name, is_cpu=key.num_threads > 0)
        else:
            price = prices.of(key.device_kind, is_cpu=False)  # what is published is of GPUs
        return None if price is None else float(price.per_hour)

    @cached_property
    def simulated(self) -> Profile:
        """The profile with the seconds that simulations take.

        A step batch takes those of the next larger known count, its bucket. Where a published count is more
        than twice the one before, a worker would have buckets that the source does not: there each count lies
        on the straight line between the two. The knee and the cap are those of `profile`: of known counts.
        """
        if not self.is_published:
            return self.profile
        between = [
            StepCost.of_median(
                rows,
                low.seconds
                + (high.seconds - low.seconds) * (rows - low.num_rows) / (high.num_rows - low.num_rows),
            )
            for low, high in pairwise(self.profile.steps)
            if high.num_rows > 2 * low.num_rows
            for rows in range(low.num_rows + 1, high.num_rows)
        ]
        steps = sorted((*self.profile.steps, *between), key=lambda step: step.num_rows)
        return replace(self.profile, steps=tuple(steps))

    @classmethod
    def of_published(cls, entry: Mapping[str, Any]) -> Self:
        """The profile of an entry of `published.json`."""
        profile = Profile(
            PublishedKey(entry["name"], entry["device"], entry["width"], entry["height"]),
            tuple(StepCost.of_median(int(rows), seconds) for rows, seconds in entry["steps"].items()),
            entry["encode_seconds"],
            entry["decode_seconds"],
            entry["num_guided_rows"],
        )
        names = ("name", "source", "model", "url", "date")
        told = {name: entry[name] for name in names}
        return cls(profile=profile, assumed=tuple(entry["assumed"]), is_published=True, **told)

    @classmethod
    def of_measured(cls, tier: str, profile: Profile) -> Self:
        """A profile that `calotype profile` wrote."""
        return cls(f"{tier}.{profile.key.fingerprint}", profile, f"measured on {profile.key.device_kind}")


@cache
def published() -> Mapping[str, PlanProfile]:
    """The published profiles, by name."""
    entries = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return {entry["name"]: PlanProfile.of_published(entry) for entry in entries}


def measured(folder: Path) -> dict[str, list[PlanProfile]]:
    """The profiles that `calotype profile` wrote into a folder, by tier, the newest first.

    Files that are not a profile of this version are left out: workers do not use them either.
    """
    found: dict[str, list[PlanProfile]] = {}
    for file in sorted(folder.glob("*.json"), key=lambda one: -one.stat().st_mtime):
        try:
            profile = Profile.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
        tier = file.name.partition(".")[0]
        found.setdefault(tier, []).append(PlanProfile.of_measured(tier, profile))
    return found


def profile_of(name: str, tier: str, folder: Path) -> PlanProfile:
    """The profile of a published name, of a file, or with `measured` the newest one of the tier.

    Raises `PlanError`, which names the tier and what there is.
    """
    if name in published():
        return published()[name]
    if name == "measured":
        here = measured(folder).get(tier)
        if here:
            return here[0]
        raise PlanError(f"tier {tier!r} has no measured profile in {folder}: run `calotype profile`")
    file = Path(name)
    try:
        return PlanProfile.of_measured(tier, Profile.from_dict(json.loads(file.read_text(encoding="utf-8"))))
    except FileNotFoundError as error:
        known = ", ".join(("measured", *published()))
        raise PlanError(f"{name!r} is not the profile of tier {tier!r}: a file, or one of {known}") from error
    except (OSError, ValueError) as error:
        raise PlanError(f"{name}: {error}") from error
