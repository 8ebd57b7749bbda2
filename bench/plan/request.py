"""What a plan is asked for: the traffic, the goals and the devices that may be had. The file `plan.toml`.

Owns the entries and their limits. It does not know how a plan is found.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.plan.profiles import PlanError
from bench.plan.traffic import Traffic
from catalogue.catalogue import what_is_wrong

MAX_DEVICES = 5000
Seconds = Annotated[float, Field(gt=0)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Goals(_Entry):
    """What the fleet must reach: the latencies are of the interactive jobs of each tier, with their queue.

    It must keep up with the traffic in any case: without another goal, that is the goal.
    """

    p95_seconds: Seconds | None = None
    p99_seconds: Seconds | None = None
    max_price_per_month: Annotated[float, Field(gt=0)] | None = None
    max_load: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Of what the devices could do in full step batches: a device is busy long before it can do no more."""

    @property
    def is_rate_alone(self) -> bool:
        """Whether the only goal is to keep up."""
        return self.p95_seconds is self.p99_seconds is self.max_price_per_month is None


class DeviceOffer(_Entry):
    """A kind of device that may be had: its price, at most how many, and the profile of each tier on it."""

    name: str
    price_per_hour: Annotated[float, Field(ge=0)] = 0.0
    max_count: Annotated[int, Field(gt=0, le=MAX_DEVICES)] = 64
    profiles: Annotated[dict[str, str], Field(min_length=1)]
    """By tier: the name of a published profile, the file of a measured one, or `measured`."""


class PlanRequest(_Entry):
    """The file: traffic, goals, devices, and the currency of all prices."""

    traffic: Traffic
    goals: Goals = Goals()
    devices: Annotated[tuple[DeviceOffer, ...], Field(min_length=1)]
    currency: str = "USD"

    @model_validator(mode="after")
    def _check(self) -> Self:
        offered = {tier for device in self.devices for tier in device.profiles}
        for tier in self.traffic.tiers:
            if tier not in offered:
                raise ValueError(f"traffic names tier {tier!r}, and no device has a profile of it")
        return self


def read_request(path: Path) -> PlanRequest:
    """Read `plan.toml`, or the same as JSON; raises `PlanError`, which names each wrong entry."""
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise PlanError(f"{path}: {error}") from error
    return checked_request(document, str(path))


def checked_request(document: Mapping[str, Any], origin: str) -> PlanRequest:
    """The request of this document; raises `PlanError`, which names `origin` and each wrong entry."""
    try:
        return PlanRequest.model_validate(document)
    except ValidationError as error:
        raise PlanError(f"{origin}: {what_is_wrong(error, str)}") from error
