"""What workers promise of equal images, and which mates a strict job may have under each of these words.

The engine has the same words and rules (`engine.determinism`, `engine.loaded`, `engine.policy.policy`), which
nothing here may import; a test compares them. It does not know which workers live.
"""

import math
from typing import TYPE_CHECKING, Literal

from storage.workloads import KnownJob

if TYPE_CHECKING:
    from catalogue.catalogue import Catalogue

DETERMINISM_LEVELS = ("not repeatable", "within 1/255", "exact within a bucket", "exact")
"""Weakest first. What a worker says that is not listed is weaker than all."""

UNKEPT = DETERMINISM_LEVELS[0]
"""The one promise under which equal requests may differ, strict ones too."""

PINNED_ROWS = 4
"""The most rows of a step batch of strict generations that share it with each other alone."""

Mates = Literal["anybody", "strict", "nobody"]
"""With whom a generation may share step batches: all of its size, strict ones up to `PINNED_ROWS`, none."""


def mates_of(job: KnownJob, determinism: str, self_test_side: int | None) -> Mates | None:
    """The mates that the job may have on a worker of this promise; `None` where that cannot be told.

    `self_test_side` is that of the square, in pixels, at which the worker tested itself for the job's tier:
    a strict job of another shape is drawn alone, since nobody has seen what mates do to that.
    """
    if not job.strict:
        return "anybody"
    if determinism == "within 1/255":
        return "nobody"
    if determinism not in ("exact", "exact within a bucket") or self_test_side is None:
        return None
    if (job.width, job.height) != (self_test_side, self_test_side):
        return "nobody"
    return "anybody" if determinism == "exact" else "strict"


def self_test_sides(catalogue: "Catalogue") -> dict[str, int]:
    """Of each tier, the side in pixels of its largest square, at which workers test themselves."""
    multiples = {model.name: model.side_multiple for model in catalogue.models}
    return {
        tier.name: math.isqrt(tier.max_pixels) // multiples[tier.model] * multiples[tier.model]
        for tier in catalogue.tiers
    }
