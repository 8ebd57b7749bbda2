"""The figures of a run, from its outcomes: latency, throughput, goodput, stages, occupancy, cost.

A request that did not succeed is a miss: it is later than every percentile that it reaches and never within a
limit. Pure arithmetic; it knows neither HTTP nor files.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.figures import quantile
from bench.load.outcomes import KINDS, Outcome
from bench.load.trace import Fields, Trace, images_of

PERCENTILES = (50, 90, 95, 99)
LATE_SECONDS = 0.05
LATE_SHARE = 0.05
"""A run is marked if the 99th percentile of the send lag is above both: 50 ms, 5 % of the median latency."""
STAGES = ("queued", "joining", "encoding", "denoising", "decoding", "file", "upload", "beside")
"""Where the time of a job went, in its order. `beside` is what the job's timings do not have: HTTP, dispatch,
writing the outcome, and the way of the answer to the client."""


@dataclass(frozen=True)
class Goal:
    """A service-level objective: a request ends within `seconds`, or within `times` its time alone.

    `alone` gives that time by class of request (`class_of`).
    """

    seconds: float | None = None
    times: float | None = None
    alone: Mapping[str, float] = field(default_factory=dict)

    def limit(self, request: Fields) -> float:
        """The seconds within which this request must end. Raises `KeyError` for a class that has no time."""
        if self.seconds is not None:
            return self.seconds
        assert self.times is not None
        return self.times * self.alone[class_of(request)]

    def __str__(self) -> str:
        return (
            f"within {self.seconds:g} s" if self.seconds is not None else f"within {self.times:g} times alone"
        )


def class_of(request: Fields) -> str:
    """What decides how long a request takes alone: its size, steps, guidance and number of images."""
    size = f"{request.get('width')}x{request.get('height')}"
    guidance = f"guidance {float(request.get('guidance_scale') or 0):g}"
    number = images_of(request)
    return f"{size}, {request.get('num_inference_steps')} steps, {guidance}" + (
        f", {number} images" if number > 1 else ""
    )


@dataclass(frozen=True)
class Latency:
    """Seconds. The mean is that of the requests that succeeded; a percentile is infinite if a miss has it."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    most: float


@dataclass(frozen=True)
class Summary:
    """The figures of the counted part of a run. A figure that nothing was measured for is None."""

    num_requests: int
    by_kind: Mapping[str, int]
    num_images: int
    seconds: float
    offered_images_per_second: float
    images_per_second: float
    requests_per_minute: float
    error_rate: float
    latency: Latency
    goal: str | None
    in_goal_share: float | None
    in_goal_per_second: float | None
    stage_seconds: Mapping[str, float]
    stage_shares: Mapping[str, float]
    download_p50_seconds: float | None
    mean_step_batch: float | None
    device_seconds_per_image: float | None
    device_utilisation: float | None
    num_devices: int
    cost_per_image: float | None
    currency: str | None
    images_checked: int
    send_lag_p99_seconds: float
    send_lag_most_seconds: float
    unwaited_share: float

    @property
    def was_late(self) -> bool:
        """Whether the load generator was late in sending, so that the load was not the one of the trace."""
        return self.by_kind.get("unsent", 0) > 0 or self.send_lag_p99_seconds > max(
            LATE_SECONDS, LATE_SHARE * _finite(self.latency.p50)
        )

    def as_json(self) -> dict[str, Any]:
        """Return the figures as JSON types; an infinite percentile is null."""
        return {
            **vars(self),
            "by_kind": dict(self.by_kind),
            "latency": {
                name: value if math.isfinite(value) else None for name, value in vars(self.latency).items()
            },
            "stage_seconds": dict(self.stage_seconds),
            "stage_shares": dict(self.stage_shares),
            "was_late": self.was_late,
        }


def summarise(
    trace: Trace, outcomes: Sequence[Outcome], goal: Goal | None = None, *, num_devices: int | None = None
) -> Summary:
    """Return the figures of the requests that count.

    Throughput counts the images whose jobs ended within the counted part of the run, whichever request they
    belong to. `num_devices` are at least so many devices that could work; if more workers did, these count.
    """
    counted = [one for one in outcomes if trace.counts(one.due_seconds)]
    if not counted:
        raise ValueError("no request is due in the part of the run that counts")
    good = [one for one in counted if one.kind == "succeeded"]
    within = [
        one
        for one in outcomes
        if one.kind == "succeeded" and trace.warm_up_seconds <= _ended(one) < trace.seconds
    ]
    seconds = trace.counted_seconds
    kinds = Counter(one.kind for one in counted)
    in_goal = None if goal is None else sum(is_in(goal, one) for one in counted)
    device_seconds = sum(one.timings.get("device_seconds", 0.0) for one in within)
    devices = max(num_devices or 0, len({one.worker for one in outcomes if one.worker}))
    costs = [one.cost for one in good if one.cost is not None]
    num_images = sum(one.num_images for one in good)
    stages = stage_seconds(good)
    total = sum(stages.values())
    lags = sorted(one.send_lag_seconds for one in counted)
    downloads = [one.download_seconds for one in good if one.download_seconds is not None]
    return Summary(
        num_requests=len(counted),
        by_kind={kind: kinds[kind] for kind in KINDS if kinds[kind]},
        num_images=num_images,
        seconds=seconds,
        offered_images_per_second=sum(images_of(one.request) for one in counted) / seconds,
        images_per_second=sum(one.num_images for one in within) / seconds,
        requests_per_minute=60 * len(within) / seconds,
        error_rate=1 - len(good) / len(counted),
        latency=latency_of([one.latency_seconds for one in counted]),
        goal=None if goal is None else str(goal),
        in_goal_share=None if in_goal is None else in_goal / len(counted),
        in_goal_per_second=None if in_goal is None else in_goal / seconds,
        stage_seconds=stages,
        stage_shares={stage: value / total for stage, value in stages.items()} if total else {},
        download_p50_seconds=statistics.median(downloads) if downloads else None,
        mean_step_batch=mean_step_batch(good),
        device_seconds_per_image=_ratio(
            sum(one.timings.get("device_seconds", 0.0) for one in good), num_images
        ),
        device_utilisation=_ratio(device_seconds, devices * seconds) if device_seconds else None,
        num_devices=devices,
        cost_per_image=sum(amount for amount, _ in costs) / num_images
        if len(costs) == len(good) and costs
        else None,
        currency=costs[0][1] if costs else None,
        images_checked=sum(len(one.sha256) for one in counted),
        send_lag_p99_seconds=quantile(lags, 0.99),
        send_lag_most_seconds=lags[-1],
        unwaited_share=sum(not one.is_waited for one in counted) / len(counted),
    )


def latency_of(latencies: Iterable[float | None]) -> Latency:
    """The distribution of latencies; None is a miss."""
    found = sorted(math.inf if one is None else one for one in latencies)
    good = [one for one in found if math.isfinite(one)]
    p50, p90, p95, p99 = (quantile(found, percentile / 100) for percentile in PERCENTILES)
    return Latency(statistics.fmean(good) if good else math.inf, p50, p90, p95, p99, found[-1])


def is_in(goal: Goal, outcome: Outcome) -> bool:
    """Whether the request ended within its limit."""
    latency = outcome.latency_seconds
    return latency is not None and latency <= goal.limit(outcome.request)


def stage_seconds(good: Sequence[Outcome]) -> dict[str, float]:
    """The mean seconds of each of `STAGES`, which add up to the mean latency; empty without timings."""
    timed = [one for one in good if one.timings]
    if not timed:
        return {}
    each = [_stages_of(one) for one in timed]
    return {stage: statistics.fmean(one[stage] for one in each) for stage in STAGES}


def _stages_of(outcome: Outcome) -> dict[str, float]:
    def timing(name: str) -> float:
        return outcome.timings.get(f"{name}_seconds", 0.0)

    found = {stage: timing(stage) for stage in STAGES if stage not in ("joining", "beside")}
    # `waiting_seconds` lasts until the first step and includes the encoding.
    found["joining"] = max(0.0, timing("waiting") - timing("encoding"))
    found["beside"] = max(0.0, (outcome.latency_seconds or 0.0) - sum(found.values()))
    return {stage: found[stage] for stage in STAGES}


def mean_step_batch(good: Sequence[Outcome]) -> float | None:
    """The mean number of images of a step batch, as an image sees it, over all steps of all images."""
    pairs = [
        (one.timings["mean_step_batch"], one.num_images * int(one.request.get("num_inference_steps") or 1))
        for one in good
        if "mean_step_batch" in one.timings
    ]
    steps = sum(num_steps for _, num_steps in pairs)
    return sum(mean * num_steps for mean, num_steps in pairs) / steps if steps else None


def _ended(outcome: Outcome) -> float:
    return math.inf if outcome.ended_seconds is None else outcome.ended_seconds


def _ratio(value: float, of: float) -> float | None:
    return value / of if of else None


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
