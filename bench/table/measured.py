"""Measures arms on running services: seconds alone, images a second at saturation, latency by load.

A round starts each service in turn and measures all its arms there; rounds are repeated, so that what changes
on the machine meanwhile meets every arm. It knows the services by HTTP.
"""

import random
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.load.alone import draw
from bench.load.arrivals import poisson
from bench.load.connection import Connection, Place
from bench.load.mix import MAX_SEED
from bench.load.runs import Bench
from bench.load.summary import Goal, Summary
from bench.load.trace import Arrival, Fields, Trace
from bench.plane.system import plane_system
from bench.table.arms import BASE_ARM, Arm, Service
from tiny.scenes import draw_scene

LOADS = (0.3, 0.6, 0.8, 0.95)
"""The offered load of the curves, as shares of what the service gave at saturation in the same round."""
DRAIN_SECONDS = 300.0
APART_SECONDS = 0.01
"""Of hundreds of requests in the same moment the API refuses some."""
NO_GOAL = Goal(seconds=DRAIN_SECONDS)


class TableError(RuntimeError):
    """An arm could not be measured; the message names it."""

    code = "arm_failed"
    retryable = True


@dataclass(frozen=True)
class Amounts:
    """How much is measured: rounds, requests alone, waves at saturation, seconds of a run of a curve.

    A wave is as many requests as the workers draw at once (`Arm.num_at_once`).
    """

    num_rounds: int = 3
    num_alone: int = 5
    num_waves: int = 10
    curve_seconds: float = 15.0


SHORT = Amounts(num_rounds=1, num_alone=1, num_waves=1, curve_seconds=3.0)


@dataclass
class Samples:
    """What was found for an arm, a value a round; `curve` has the runs at each of `LOADS`, if any.

    `step_batches` has no value for a round whose jobs did not tell the size of their step batches.
    """

    arm: Arm
    alone_seconds: list[float] = field(default_factory=list)
    images_per_second: list[float] = field(default_factory=list)
    step_batches: list[float] = field(default_factory=list)
    curve: dict[float, list[Summary]] = field(default_factory=dict)
    obeyed: float | None = None
    """Percent of the captions that its images obey (`bench.table.quality`), if that was measured."""
    base: "Samples | None" = None
    """What it is compared with, if that is not the base arm."""


def measure(arms: Sequence[Arm], amounts: Amounts, say: Callable[[str], None]) -> list[Samples]:
    """Measure all arms in every round. Raises `TableError`."""
    found = {arm.key: Samples(arm) for arm in arms}
    services = list(dict.fromkeys(arm.service for arm in arms))
    for number in range(amounts.num_rounds):
        # Every other round in the other order, so that a drift of the machine is no drift of an arm.
        for service in services if number % 2 == 0 else services[::-1]:
            say(f"round {number + 1} of {amounts.num_rounds}: {service.name}")
            here = [found[arm.key] for arm in arms if arm.service is service]
            _measure_service(service, here, amounts, seed=number)
    return list(found.values())


def _measure_service(service: Service, here: Sequence[Samples], amounts: Amounts, seed: int) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="calotype-table-") as folder,
        plane_system(
            Path(folder),
            devices=service.devices,
            max_rows=service.max_rows,
        ) as plane,
    ):
        bench = Bench(Place(plane.url, plane.api_key), NO_GOAL, service.num_workers, DRAIN_SECONDS)
        connection = Connection(bench.place, None)
        try:
            for samples in here:
                _measure_arm(samples, bench, connection, amounts, seed)
        finally:
            connection.close()


def _measure_arm(samples: Samples, bench: Bench, connection: Connection, amounts: Amounts, seed: int) -> None:
    arm = samples.arm
    num_saturated = amounts.num_waves * arm.num_at_once
    requests = requests_of(arm.request, max(num_saturated, amounts.num_alone + 1), seed)
    alone = []
    for request in requests[: amounts.num_alone + 1]:
        outcome = draw(request, connection)
        if outcome.latency_seconds is None:
            raise TableError(f"{arm.key}: a request alone is {outcome.kind}: {outcome.detail}")
        alone.append(outcome.latency_seconds)
    samples.alone_seconds.append(statistics.median(alone[1:]))  # the first of its kind is slow
    saturated = bench.run(at_once(requests[:num_saturated]))
    if saturated.summary.error_rate:
        raise TableError(f"{arm.key}: at saturation {dict(saturated.summary.by_kind)}")
    rate = images_per_second([one.ended_seconds or 0.0 for one in saturated.outcomes], arm.num_at_once)
    samples.images_per_second.append(rate)
    if (step_batch := saturated.summary.mean_step_batch) is not None:
        samples.step_batches.append(step_batch)
    if arm is BASE_ARM or not arm.changes:
        for load in LOADS:
            run = bench.run(at_rate(arm.request, load * rate, amounts.curve_seconds, seed))
            samples.curve.setdefault(load, []).append(run.summary)


def requests_of(fields: Fields, number: int, seed: int) -> list[Fields]:
    """Requests that differ in prompt and seed alone."""
    rng = random.Random(seed)
    return [
        {**fields, "prompt": draw_scene(rng, pairs=0.5).caption(), "seed": rng.randrange(MAX_SEED)}
        for _ in range(number)
    ]


def at_once(requests: Sequence[Fields]) -> Trace:
    """A trace in which all requests are due at the start, so far apart that the API can take them."""
    arrivals = (Arrival(APART_SECONDS * number, (request,)) for number, request in enumerate(requests))
    return Trace(tuple(arrivals), seconds=DRAIN_SECONDS)


def at_rate(fields: Fields, images_per_second: float, seconds: float, seed: int) -> Trace:
    """A Poisson trace of such requests, whose first quarter does not count."""
    rng = random.Random(seed)
    warm_up = seconds / 4
    instants = poisson(images_per_second, warm_up, rng)
    instants += [warm_up + one for one in poisson(images_per_second, seconds, rng)]
    requests = requests_of(fields, len(instants), seed)
    arrivals = [Arrival(instant, (request,)) for instant, request in zip(instants, requests, strict=True)]
    return Trace(tuple(arrivals), warm_up + seconds, warm_up)


def images_per_second(ended: Sequence[float], num_at_once: int) -> float:
    """The rate of a saturated run of equal requests, of which the workers draw `num_at_once` together.

    They start together and take equally long, so that they end in waves, and a rate between two ends depends
    on where in a wave these are. Hence whole waves are counted: from the mean end of the second one to that
    of the last but one, since the service starts in the first and may be half empty in the last. Means of
    whole waves differ by whole periods, also where workers are out of step with each other. With fewer than
    four waves, all that ended are counted until the last end.
    """
    ordered = sorted(ended)
    waves = [
        ordered[start : start + num_at_once]
        for start in range(0, len(ordered) - num_at_once + 1, num_at_once)
    ]
    if len(waves) < 4:
        return len(ordered) / ordered[-1]
    second, last_but_one = statistics.fmean(waves[1]), statistics.fmean(waves[-2])
    return num_at_once * (len(waves) - 3) / (last_but_one - second)


def ratios(samples: Samples, base: Samples, values: Callable[[Samples], Sequence[float]]) -> list[float]:
    """The arm ÷ the base arm, round by round."""
    return [one / other for one, other in zip(values(samples), values(base), strict=True)]


def by_key(found: Sequence[Samples]) -> Mapping[str, Samples]:
    """The samples by their arm's key."""
    return {one.arm.key: one for one in found}
