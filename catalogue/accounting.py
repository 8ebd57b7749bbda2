"""What jobs cost and how they are accounted: prices of devices, the cost of device seconds, tags.

Pure arithmetic in decimal numbers, so that sums of costs are exact. It does not know which device a worker
has, nor who pays.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

CPU = "cpu"
"""The key of the price of every CPU that has no price by its own name."""
MAX_TAG_CHARACTERS = 64
TAG = rf"^[A-Za-z0-9._:-]{{1,{MAX_TAG_CHARACTERS}}}$"
_SECONDS_AN_HOUR = 3600
_SMALLEST = Decimal("1e-9")
"""The resolution of a cost: a device of 1 an hour costs 300 times as much in a millisecond."""


@dataclass(frozen=True)
class Cost:
    """An amount of money; `currency` is a code of ISO 4217."""

    amount: Decimal
    currency: str


@dataclass(frozen=True)
class DevicePrice:
    """The price of an hour of one device."""

    per_hour: Decimal
    currency: str

    def cost_of(self, device_seconds: float) -> Cost:
        """The price of so many seconds of the device."""
        amount = self.per_hour * Decimal(str(device_seconds)) / _SECONDS_AN_HOUR
        return Cost(amount.quantize(_SMALLEST), self.currency)


class Prices(BaseModel):
    """The table `[prices]` of `calotype.toml`: prices of an hour by the name of the device's hardware."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"
    per_hour: Mapping[str, Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]] = {}

    def of(self, device_name: str, *, is_cpu: bool) -> DevicePrice | None:
        """The price of the device of this hardware name, which a CPU may have as `cpu`; None without one."""
        price = self.per_hour.get(device_name)
        if price is None and is_cpu:
            price = self.per_hour.get(CPU)
        return None if price is None else DevicePrice(Decimal(str(price)), self.currency)


def amount_text(amount: float, currency: str) -> str:
    """A cost for people, with two decimals and three digits at least: `1234.50 USD`, `0.000000417 USD`."""
    decimals = max(2, 2 - math.floor(math.log10(amount))) if amount else 2
    return f"{amount:.{min(decimals, 9)}f} {currency}"


def check_tag(tag: str) -> str:
    """Return the tag; raises `ValueError` unless it has only the characters of a tag, and few enough."""
    if len(tag) > MAX_TAG_CHARACTERS:
        raise ValueError(f"has {len(tag)} characters; the limit is {MAX_TAG_CHARACTERS}")
    if not re.fullmatch(TAG, tag):
        raise ValueError("should have only the letters a to z and A to Z, digits, and . _ : -, at least one")
    return tag
