"""A generation as an estimate sees it: how many rows it has and how often it runs the whole model.

Owns the rules of guidance cutoff and step cache as far as they change what a step costs. The engine has the
same rule of full steps (`engine.partial_forwards.step_cache`), which nothing here may import; a test compares
them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from storage.profiles import StoredProfile
from storage.workloads import KnownJob
from web.estimates.determinism import PINNED_ROWS, Mates

NUM_FIRST_FULL_STEPS = 4
NUM_LAST_FULL_STEPS = 1

ALMOST_NOTHING = 1e-6
"""Of a step: what rounding leaves of one that has ended."""


@dataclass(eq=False)
class EstimatedGeneration:
    """One image to be drawn; `rate` is its steps a second as things stand."""

    job: KnownJob
    order: int  # of its job: the oldest first
    mates: Mates
    num_guided_rows: int
    num_unguided_steps: int  # its last ones
    full_share: float  # of the steps that are left
    steps_left: float
    rate: float = 0.0

    def __post_init__(self) -> None:
        self.key = (self.job.tier, self.job.width, self.job.height, self.mates)
        """Of what shares its forward passes."""

    @property
    def is_drawn(self) -> bool:
        """Whether nothing is left of it."""
        return self.steps_left <= ALMOST_NOTHING

    @property
    def num_rows(self) -> int:
        """Rows of its next step."""
        is_guided = self.steps_left > self.num_unguided_steps + ALMOST_NOTHING
        return self.num_guided_rows if is_guided else 1

    @property
    def steps_until_change(self) -> float:
        """Steps until it is drawn, or before that until it drops its guidance."""
        if self.steps_left > self.num_unguided_steps + ALMOST_NOTHING:
            return self.steps_left - self.num_unguided_steps
        return self.steps_left


def estimate_of(job: KnownJob, order: int, profile: StoredProfile, mates: Mates) -> list[EstimatedGeneration]:
    """What is left of the job's images, each as far as all of them are on average."""
    num_guided_steps = math.ceil(job.guidance_cutoff * job.num_steps) if job.is_guided else 0
    return [
        EstimatedGeneration(
            job=job,
            order=order,
            mates=mates,
            num_guided_rows=profile.num_guided_rows,
            num_unguided_steps=job.num_steps - num_guided_steps,
            full_share=_full_share(job),
            steps_left=job.num_steps * (1 - job.progress),
        )
        for _ in range(job.num_images)
    ]


def shared_step_seconds(profile: StoredProfile, batch: Sequence[EstimatedGeneration]) -> float:
    """Seconds of a step of all these together, as it is on average while each is in any of its steps.

    Every row runs the shallow part. The deep part runs in the steps in which some member is full, with
    the rows of the members that are; where their full steps lie is taken to be chance. Who may not share
    with anybody runs at `PINNED_ROWS`, whatever smaller steps were measured.
    """
    least_rows = 1 if batch[0].mates == "anybody" else PINNED_ROWS
    num_rows = sum(one.num_rows for one in batch)
    step_seconds = profile.step_seconds(max(num_rows, least_rows))
    share_without_full = math.prod(1 - one.full_share for one in batch)
    if not share_without_full:
        return step_seconds
    share_with_full = 1 - share_without_full
    num_full_rows = sum(one.num_rows * one.full_share for one in batch) / share_with_full
    full_seconds = (1 - profile.cached_share) * profile.step_seconds(max(num_full_rows, least_rows))
    return profile.cached_share * step_seconds + share_with_full * full_seconds


def is_full(step_index: int, interval: int, num_steps: int) -> bool:
    """Whether this step of a step cache of `interval` runs the whole model, as `StepCache.is_full`."""
    return (
        step_index % interval == 0
        or step_index < NUM_FIRST_FULL_STEPS
        or step_index >= num_steps - NUM_LAST_FULL_STEPS
    )


def _full_share(job: KnownJob) -> float:
    """Of the steps that are left of the job, how many run the whole model."""
    if job.step_cache == 1:
        return 1.0
    left = range(min(round(job.num_steps * job.progress), job.num_steps - 1), job.num_steps)
    return sum(is_full(index, job.step_cache, job.num_steps) for index in left) / len(left)
