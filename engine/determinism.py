"""What a model promises of equal requests, and the row limits and buckets under which that holds.

Owns the words of the promise, which workers tell the API. It does not know how a promise is found out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engine.policy.buckets import BucketsByShape

DeterminismLevel = Literal["exact", "exact within a bucket", "within 1/255", "not repeatable"]
DETERMINISM_LEVELS: tuple[DeterminismLevel, ...] = (
    "exact",
    "exact within a bucket",
    "within 1/255",
    "not repeatable",
)
"""Strongest first. A strict request equals its solo run under all but the last, and is refused there."""


@dataclass(frozen=True)
class SelfTest:
    """What one model on this device can promise, and the row caps and buckets under which it holds."""

    determinism: DeterminismLevel
    row_limits: Mapping[int, int]  # max_pixels -> rows
    buckets: BucketsByShape


def weakest(*determinism_levels: DeterminismLevel) -> DeterminismLevel:
    """The promise that all of these keep."""
    return max(determinism_levels, key=DETERMINISM_LEVELS.index)
