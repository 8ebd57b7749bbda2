"""The traffic that a fleet is planned for: classes of jobs with their shares, arriving as a Poisson process.

Owns how it is written down (`plan.toml`) and drawn. It does not know what a job costs, nor which worker runs
it.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from catalogue.lanes import Lane

Share = Annotated[float, Field(gt=0)]
MAX_STEPS = 1000


@dataclass(frozen=True, eq=False)
class PlannedJob:
    """A job of the traffic; two of the same values are two jobs."""

    tier: str
    lane: Lane
    width: int  # pixels
    height: int
    num_images: int
    num_steps: int
    is_guided: bool
    is_strict: bool = False


class JobClass(BaseModel):
    """Jobs of one tier, lane and size; numbers of steps and of images may be given with shares."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tier: str
    share: Share = 1.0
    lane: Lane = "interactive"
    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]
    num_inference_steps: int | dict[int, Share] = 20
    guided_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    num_images: int | dict[int, Share] = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, limit in (("num_inference_steps", MAX_STEPS), ("num_images", 4)):
            for value in _shares(getattr(self, name)):
                if not 1 <= value <= limit:
                    raise ValueError(f"{name}: {value} is not between 1 and {limit}")
        return self

    def kinds(self) -> list[tuple[float, PlannedJob]]:
        """Every kind of job in it with its share of all jobs of the class; the shares add up to one."""
        steps, images = _shares(self.num_inference_steps), _shares(self.num_images)
        guided = {True: self.guided_share, False: 1 - self.guided_share}
        return [
            (
                one * other * third,
                PlannedJob(self.tier, self.lane, self.width, self.height, num_images, num_steps, is_guided),
            )
            for (num_steps, one), (num_images, other), (is_guided, third) in itertools.product(
                steps.items(), images.items(), guided.items()
            )
            if third
        ]


class Traffic(BaseModel):
    """Classes of jobs, and the jobs of all of them that arrive in a second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobs_per_second: Annotated[float, Field(gt=0)]
    jobs: Annotated[tuple[JobClass, ...], Field(min_length=1)]

    @property
    def tiers(self) -> list[str]:
        """The tiers that it needs."""
        return list(dict.fromkeys(one.tier for one in self.jobs))

    @property
    def images_per_second(self) -> float:
        """Images of all jobs that arrive in a second."""
        return sum(rate * job.num_images for rate, job in self.rates())

    def rates(self) -> list[tuple[float, PlannedJob]]:
        """Every kind of job with the number of them that arrives in a second."""
        total = sum(one.share for one in self.jobs)
        return [
            (self.jobs_per_second * one.share / total * share, job)
            for one in self.jobs
            for share, job in one.kinds()
        ]

    def of_tiers(self, tiers: Sequence[str]) -> "Traffic":
        """The part of it that is for these tiers, at its own rate."""
        jobs = tuple(one for one in self.jobs if one.tier in tiers)
        share = sum(one.share for one in jobs) / sum(one.share for one in self.jobs)
        return Traffic(jobs_per_second=self.jobs_per_second * share, jobs=jobs)

    def at(self, jobs_per_second: float) -> "Traffic":
        """The same mix at another rate."""
        return Traffic(jobs_per_second=jobs_per_second, jobs=self.jobs)

    def drawn(self, num_jobs: int, seed: int) -> list[tuple[float, PlannedJob]]:
        """So many jobs with their instants in seconds; one seed gives every configuration the same."""
        rng = random.Random(seed)
        rates = self.rates()
        kinds, weights = [job for _, job in rates], [rate for rate, _ in rates]
        instants = itertools.accumulate(rng.expovariate(self.jobs_per_second) for _ in range(num_jobs))
        return list(zip(instants, rng.choices(kinds, weights, k=num_jobs), strict=True))


def _shares(value: int | Mapping[int, float]) -> dict[int, float]:
    """The values with shares that add up to one."""
    if isinstance(value, int):
        return {value: 1.0}
    total = sum(value.values())
    return {one: share / total for one, share in value.items()}


def seen_traffic(jobs: Sequence[Mapping[str, Any]], seconds: float) -> Traffic:
    """The traffic of recorded jobs, as `GET /v1/jobs` shows them, that arrived in so many seconds."""
    counts: dict[tuple[Any, ...], int] = {}
    for job in jobs:
        names = ("tier", "lane", "width", "height", "num_inference_steps", "num_images")
        kind = (*(job[name] for name in names), job["guidance_scale"] > 1)
        counts[kind] = counts.get(kind, 0) + 1
    classes = [
        JobClass(
            tier=tier,
            lane=lane,
            width=width,
            height=height,
            num_inference_steps=num_steps,
            num_images=num_images,
            guided_share=float(is_guided),
            share=num,
        )
        for (tier, lane, width, height, num_steps, num_images, is_guided), num in counts.items()
    ]
    return Traffic(jobs_per_second=len(jobs) / seconds, jobs=tuple(classes))
