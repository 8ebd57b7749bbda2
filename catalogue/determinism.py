"""Determinism levels, and what a strict request may share step batches with at each of them.

The engine enforces these rules and the estimates of the web apply them to queued jobs. This module
does not know how a level is measured, or which workers are live.
"""

from collections.abc import Iterable
from typing import Literal, TypeVar, get_args

DeterminismLevel = Literal["exact", "exact within a bucket", "within 1/255", "not repeatable"]
DETERMINISM_LEVELS: tuple[DeterminismLevel, ...] = get_args(DeterminismLevel)
"""Strongest first. At every level but the last, a strict image has the bytes that it has when run alone."""

NOT_REPEATABLE: DeterminismLevel = "not repeatable"
"""Equal requests may give different images here; strict requests are rejected."""

PINNED_ROWS = 4
"""Rows of every step batch of strict generations below the level `exact`: they are padded up to it."""

Sharing = Literal["any", "pinned", "none"]
"""Which generations of equal shape may share step batches with a given one: any, strict ones in batches that
are pinned to `PINNED_ROWS`, or none."""

Level = TypeVar("Level", bound=str)


def weakest(levels: Iterable[Level]) -> Level:
    """The level that all of these reach; an unknown one is weaker than all. Raises `ValueError` for none."""
    return max(levels, key=_rank)


def sharing_of(level: str, *, is_strict: bool, is_tried: bool) -> Sharing:
    """What a generation may share step batches with on a device of this level.

    `is_tried` says whether the self-test of the device tried the shape: at any other shape, no image is known
    to stay the same in a mixed batch.
    """
    if not is_strict:
        return "any"
    if level not in ("exact", "exact within a bucket") or not is_tried:
        return "none"
    return "any" if level == "exact" else "pinned"


def _rank(level: str) -> int:
    known: tuple[str, ...] = DETERMINISM_LEVELS
    return known.index(level) if level in known else len(known)
