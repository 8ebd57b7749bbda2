"""What a queued job may share step batches with on a live worker, as far as the worker's row shows.

The rules are those of `catalogue.determinism`; here they are applied to a job and a worker's self-tests.
This module does not decide which workers are live.
"""

import math
from typing import TYPE_CHECKING

from catalogue.determinism import DETERMINISM_LEVELS, NOT_REPEATABLE, Sharing, sharing_of
from storage.workloads import KnownJob

if TYPE_CHECKING:
    from catalogue.catalogue import Catalogue


def sharing_on(job: KnownJob, level: str, self_test_side: int | None) -> Sharing | None:
    """What the job may share step batches with on a worker of this level; `None` if that is unknown.

    `self_test_side` is the side in pixels of the square at which the worker tested itself for the job's tier.
    """
    if job.is_strict and (level not in DETERMINISM_LEVELS or level == NOT_REPEATABLE):
        return None
    if job.is_strict and self_test_side is None and level != "within 1/255":
        return None
    is_tried = (job.width, job.height) == (self_test_side, self_test_side)
    return sharing_of(level, is_strict=job.is_strict, is_tried=is_tried)


def self_test_sides(catalogue: "Catalogue") -> dict[str, int]:
    """The side in pixels of each tier's largest square, at which workers test themselves, by tier."""
    multiples = {model.name: model.side_multiple for model in catalogue.models}
    return {
        tier.name: math.isqrt(tier.max_pixels) // multiples[tier.model] * multiples[tier.model]
        for tier in catalogue.tiers
    }
