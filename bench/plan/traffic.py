"""The traffic that a fleet is planned for: classes of jobs with their shares, arriving as a Poisson process.

Owns how it is written down (`plan.toml`) and drawn. It does not know what a job costs, nor which worker runs
it.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bench.plan.profiles import PlanError
from catalogue.lanes import Lane
from catalogue.pipeline_tasks import num_steps_at
from catalogue.step_cache import MAX_STEP_CACHE

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
    guidance_cutoff: float = 1.0
    step_cache: int = 1
    is_strict: bool = False

    @property
    def num_guided_steps(self) -> int:
        """The first steps, which have guidance."""
        return math.ceil(self.guidance_cutoff * self.num_steps) if self.is_guided else 0


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
    guidance_cutoff: Annotated[float, Field(ge=0, le=1)] = 1.0
    step_cache: Annotated[int, Field(ge=1, le=MAX_STEP_CACHE)] = 1
    strict: bool = False
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
                PlannedJob(
                    self.tier,
                    self.lane,
                    self.width,
                    self.height,
                    num_images,
                    num_steps,
                    is_guided,
                    self.guidance_cutoff,
                    self.step_cache,
                    self.strict,
                ),
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


@dataclass(frozen=True)
class SeenTraffic:
    """A traffic with what was left out of the record, or assumed, a sentence each."""

    traffic: Traffic
    notes: tuple[str, ...]


def seen_traffic(jobs: Sequence[Mapping[str, Any]]) -> SeenTraffic:
    """The traffic of recorded jobs, as `GET /v1/jobs` shows them.

    Interactive jobs that were submitted one at a time give the rate. Others arrive many at once: they are
    spread over the time of the record. Raises `PlanError` if there is no rate.
    """
    kept = [job for job in jobs if job["state"] not in ("canceled", "expired")]
    single = [_instant(job) for job in kept if _is_single(job)]
    seconds = max(single, default=0.0) - min(single, default=0.0)
    if not seconds:
        raise PlanError(
            f"--recorded: of the newest {len(jobs)} jobs fewer than 2 are interactive and were submitted one "
            "at a time, so that there is no rate: write the traffic into a file"
        )
    instants = [_instant(job) for job in kept]
    window = max(instants) - min(instants)
    rates: dict[JobClass, float] = {}
    for job in kept:
        rate = (len(single) - 1) / len(single) / seconds if _is_single(job) else 1 / window
        rates[_class_of(job)] = rates.get(_class_of(job), 0.0) + rate
    classes = tuple(one.model_copy(update={"share": rate}) for one, rate in rates.items())
    traffic = Traffic(jobs_per_second=sum(rates.values()), jobs=classes)
    return SeenTraffic(traffic, tuple(_notes(jobs, kept, window)))


def _class_of(job: Mapping[str, Any]) -> JobClass:
    num_steps, is_guided = job["num_inference_steps"], job["guidance_scale"] > 1
    if job.get("strength") is not None:
        num_steps = max(1, num_steps_at(job["strength"], num_steps))
    return JobClass(
        tier=job["tier"],
        lane=job["lane"],
        width=job["width"],
        height=job["height"],
        num_inference_steps=num_steps,
        num_images=job["num_images"],
        guided_share=float(is_guided),
        guidance_cutoff=job.get("guidance_cutoff", 1.0) if is_guided else 1.0,
        step_cache=job.get("step_cache", 1),
        strict=job.get("strict", False),
    )


def _notes(
    jobs: Sequence[Mapping[str, Any]], kept: Sequence[Mapping[str, Any]], window: float
) -> Iterator[str]:
    inputs = ("image", "mask_image", "control_image", "loras", "pipeline_parameters")
    at_once, strict = [job for job in kept if not _is_single(job)], [job for job in kept if job.get("strict")]
    if len(kept) < len(jobs):
        yield f"{len(jobs) - len(kept)} jobs that were canceled or expired are left out"
    if at_once:
        yield f"{len(at_once)} bulk jobs and jobs of a CSV are spread over the {window:.0f} s of the record"
    if strict:
        yield f"{len(strict)} jobs are strict: each of their images is planned a step batch of its own"
    if num := sum(any(job.get(name) for name in inputs) for job in kept):
        yield f"{num} jobs have input images, adapters or pipeline parameters, of which no cost is known"


def _is_single(job: Mapping[str, Any]) -> bool:
    return bool(job["lane"] == "interactive" and not job.get("batch_id"))


def _instant(job: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(job["created_at"]).timestamp()
