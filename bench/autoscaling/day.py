"""Runs a fleet through a day of traffic while an autoscaler adds and drains its workers.

Owns the start-up delay, which workers are drained, what Prometheus has scraped, and what is counted. Which
job runs where and when is simulated by `engine.policy.fleet`. It does not know manifests.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from bench.autoscaling.autoscaler import Autoscaler, Values
from bench.autoscaling.device import DeviceCurve, FleetJob, new_worker
from bench.autoscaling.rules import Rules
from bench.autoscaling.traffic import Arrival
from catalogue.lanes import LANES, Lane
from engine.policy.fleet import Run, SimulatedFleet, SimulatedWorker

SCRAPE_SECONDS = 15.0
"""As in deploy/prometheus.yml."""
RATE_SECONDS = 600.0
"""Over which the rate of images is taken."""
REVERSAL_SECONDS = 600.0
"""Workers that are wanted again within this time should have been kept: a start takes minutes."""
Worker = SimulatedWorker[FleetJob]


@dataclass(frozen=True)
class Backlog:
    """The jobs that wait at one instant, those that workers hold, and by lane the device seconds of both.

    `images_per_second` is the rate of interactive images in the last minutes.
    """

    num_queued: int
    num_held: int
    work: Mapping[Lane, float]
    images_per_second: float


SIGNALS: Mapping[str, Callable[[Backlog], float]] = {
    "interactive-work": lambda backlog: backlog.work["interactive"],
    "bulk-work": lambda backlog: backlog.work["bulk"],
    "drawn-images": lambda backlog: backlog.images_per_second,
    "queued-jobs": lambda backlog: backlog.num_queued + backlog.num_held,
}
"""By name of a trigger of the manifest, what its query gives; a test compares them with the queries."""
COMPARED: Mapping[str, Callable[[Backlog], float]] = {"queue-length": lambda backlog: backlog.num_queued}
"""Likewise, of triggers that no manifest has and that ours are compared with."""


@dataclass(frozen=True)
class Conditions:
    """What the fleet finds: seconds until a worker takes jobs, and those in which a drained one must end."""

    start_seconds: float = 120.0
    drain_seconds: float = 60.0
    num_workers: int = 0
    seed: int = 1


@dataclass
class Day:
    """What happened. `workers` has the number at each change; an instant is in seconds."""

    runs: list[Run[FleetJob]] = field(default_factory=list)
    workers: list[tuple[float, int]] = field(default_factory=list)
    worker_seconds: float = 0.0
    drains: list[tuple[float, Worker]] = field(default_factory=list)
    seconds: float = 0.0

    def num_changes(self, since: float = 0.0) -> int:
        """How often the number of workers changed."""
        return sum(at > since for at, _ in self.workers)

    def num_reversals(self, since: float = 0.0) -> int:
        """How often workers were added soon after some were removed: each is a start that was not needed."""
        removed_at, found = -math.inf, 0
        for (_, before), (at, after) in pairwise(self.workers):
            if after < before:
                removed_at = at
            elif at - removed_at < REVERSAL_SECONDS:
                removed_at, found = -math.inf, found + (at > since)
        return found

    def num_workers(self, at: float) -> int:
        """The workers at an instant, those that start included."""
        return next(number for changed_at, number in reversed(self.workers) if changed_at <= at)

    def waits(self) -> list[float]:
        """Seconds from the arrival of each job to its first step, least first."""
        return sorted(run.begun_at - run.arrived_at for run in self.runs)

    def num_cut(self, drain_seconds: float) -> int:
        """Jobs that a drained worker would not have finished in time, so that they go back to the queue."""
        drained_at = {worker: at for at, worker in self.drains}
        return sum(
            run.worker in drained_at and run.ended_at > drained_at[run.worker] + drain_seconds
            for run in self.runs
        )


def run_day(
    curve: DeviceCurve,
    jobs: Iterable[Arrival],
    seconds: float,
    rules: Rules | None,
    conditions: Conditions,
) -> Day:
    """Serve the jobs, then watch the fleet until `seconds`; without rules the number of workers is fixed."""
    return _Day(curve, rules, conditions).run(jobs, seconds)


class _Day:
    """A running day: the fleet, the workers that start, and those that serve."""

    def __init__(self, curve: DeviceCurve, rules: Rules | None, conditions: Conditions) -> None:
        self._curve, self._conditions = curve, conditions
        self._scaler = Autoscaler(rules) if rules else None
        self._chance = random.Random(conditions.seed)
        self._serving = [new_worker(curve) for _ in range(conditions.num_workers)]
        self._starting: list[float] = []  # when each will be ready, the oldest first
        self._fleet: SimulatedFleet[FleetJob] = SimulatedFleet(self._serving, seed=conditions.seed)
        self._next_scrape_at = -SCRAPE_SECONDS / 2  # out of step with what reads them
        self._scraped: Values = {}
        self._num_counted = 0  # of the runs that have ended, in `_images`
        self._day = Day(workers=[(0.0, conditions.num_workers)])
        self._images: deque[tuple[float, int]] = deque([(0.0, 0)])  # all that were stored by each scrape

    def run(self, jobs: Iterable[Arrival], seconds: float) -> Day:
        """Serve all jobs, and return what happened until the last has ended and `seconds` have passed."""
        day = self._day
        for job in jobs:
            self._go_on(job.at)
            self._fleet.submit(FleetJob(job.num_images, lane=job.lane), job.at)
        self._go_on(seconds)
        while self._fleet.num_waiting or any(worker.num_jobs for worker in self._fleet.workers):
            self._go_on(self._fleet.now + SCRAPE_SECONDS)
        day.seconds = self._fleet.now
        day.worker_seconds = self._worker_seconds()
        return day

    def _go_on(self, until: float) -> None:
        """Run the fleet to an instant, and let the autoscaler decide on the way."""
        while (at := self._next_at()) <= until:
            self._day.runs += self._fleet.run_until(at)
            while self._starting and self._starting[0] <= at:
                self._starting.pop(0)
                worker = new_worker(self._curve)
                self._serving.append(worker)
                self._fleet.add(worker, at)
            if self._next_scrape_at <= at:
                self._next_scrape_at += SCRAPE_SECONDS
                self._scrape()
            if self._scaler and self._scaler.next_at <= at:
                self._scale(self._scaler.decide(lambda: self._scraped, self._num_workers, at), at)
        self._day.runs += self._fleet.run_until(until)

    def _next_at(self) -> float:
        if self._scaler is None:
            return math.inf
        return min(self._scaler.next_at, self._next_scrape_at, *self._starting[:1])

    @property
    def _num_workers(self) -> int:
        return len(self._serving) + len(self._starting)

    def _scale(self, wanted: int, at: float) -> None:
        """Start workers, or remove them: those that start first, then any, as Kubernetes does."""
        if wanted == self._num_workers:
            return
        ready_at = at + self._conditions.start_seconds
        self._starting += [ready_at] * (wanted - self._num_workers)
        while self._num_workers > wanted and self._starting:
            self._day.worker_seconds += at - (self._starting.pop() - self._conditions.start_seconds)
        while self._num_workers > wanted:
            place = self._chance.randrange(len(self._serving))
            self._serving[place], self._serving[-1] = self._serving[-1], self._serving[place]
            worker = self._serving.pop()
            self._day.drains.append((at, worker))
            self._fleet.drain(worker)
        self._day.workers.append((at, self._num_workers))

    def _worker_seconds(self) -> float:
        """Seconds of all devices, their start-up and their drain included."""
        start, now = self._conditions.start_seconds, self._fleet.now
        served = [worker for _, worker in self._day.drains] + self._serving
        begun = sum(start for worker in served if worker.started_at > 0)
        lived = sum(min(worker.stopped_at, now) - worker.started_at for worker in served)
        return self._day.worker_seconds + begun + lived + sum(now - (at - start) for at in self._starting)

    def _scrape(self) -> None:
        image_seconds, num_steps = self._curve.image_seconds, self._curve.num_steps
        work: dict[Lane, float] = dict.fromkeys(LANES, 0.0)
        num_queued = num_held = 0
        for run in self._fleet.waiting():
            num_queued += 1
            work[run.job.lane] += image_seconds * run.job.num_images
        for worker in self._fleet.workers:
            num_held += worker.num_jobs
            for one, run in worker.runs.items():
                num_left = worker.device.num_steps_left_at(one, self._fleet.now)
                work[run.job.lane] += image_seconds * num_left / num_steps
        backlog = Backlog(num_queued, num_held, work, self._images_per_second())
        self._scraped = {name: read(backlog) for name, read in {**SIGNALS, **COMPARED}.items()}

    def _images_per_second(self) -> float:
        runs, now = self._day.runs, self._fleet.now
        number = self._images[-1][1] + sum(
            run.job.num_images for run in runs[self._num_counted :] if run.job.lane == "interactive"
        )
        self._num_counted = len(runs)
        self._images.append((now, number))
        while now - self._images[0][0] > RATE_SECONDS:
            self._images.popleft()
        return (number - self._images[0][1]) / RATE_SECONDS
