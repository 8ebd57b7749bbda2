"""What a fleet does with a traffic, by simulation: latencies, utilisation, rows of step batches, cost.

Owns one run and the spread over several seeds. It does not know goals, nor which fleet is tried next.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.figures import quantile
from bench.plan.fleets import HOURS_PER_MONTH, Fleet, Slowing
from bench.plan.traffic import PlannedJob, Traffic
from engine.policy.fleet import SEED, Overheads, SimulatedFleet
from engine.policy.free_workers import Choose, first_to_poll

WARM_UP_SHARE = 0.1
QUANTILES = (0.5, 0.95, 0.99)
NUM_JOBS = 2000
JOBS_PER_WORKER = 40
MAX_LAG = 0.05
"""A fleet keeps up if it has ended all but this share of what arrived by the last arrival, beside the jobs
that would be in it at any time."""
NO_OVERHEADS = Overheads()


@dataclass(frozen=True)
class Outcome:
    """A fleet under a traffic, of one seed."""

    seconds: tuple[float, float, float]  # p50, p95 and p99 of the latency of interactive jobs, or of all
    seconds_by_tier: dict[str, tuple[float, float, float]]  # of interactive jobs; no tier without any
    mean_seconds: float  # of all jobs
    bulk_seconds: tuple[float, float, float] | None
    busy_share: float  # of all devices, until the last arrival; a step batch of one row is busy too
    mean_rows: float  # of a step batch
    images_per_second: float  # that ended until the last arrival
    keeps_up: bool  # whether the jobs in it stopped growing
    growth_by_tier: dict[str, int]  # jobs in it at the last arrival, beyond those at half of the time

    @property
    def p95(self) -> float:
        """The 95th percentile of the latency of interactive jobs, in seconds."""
        return self.seconds[1]


def simulate(
    fleet: Fleet,
    traffic: Traffic,
    seed: int,
    *,
    num_jobs: int | None = None,
    overheads: Overheads = NO_OVERHEADS,
    slowing: Slowing = lambda: 1.0,
    choose: Choose = first_to_poll,
) -> Outcome:
    """Simulate one run; without `num_jobs`, of enough jobs for a 95th percentile in a fleet of this size."""
    num_jobs = num_jobs or max(NUM_JOBS, JOBS_PER_WORKER * fleet.num_workers)
    drawn = traffic.drawn(num_jobs, seed)
    return serve(fleet, drawn, overheads=overheads, slowing=slowing, seed=seed, choose=choose)


def serve(
    fleet: Fleet,
    drawn: Sequence[tuple[float, PlannedJob]],
    *,
    overheads: Overheads = NO_OVERHEADS,
    slowing: Slowing = lambda: 1.0,
    warm_up_share: float = WARM_UP_SHARE,
    seed: int = SEED,
    choose: Choose = first_to_poll,
) -> Outcome:
    """Simulate these jobs, which arrive at these instants in seconds; `seed` is of who takes which."""
    workers = [worker for pool in fleet.pools for worker in pool.workers(slowing)]
    simulated = SimulatedFleet(workers, overheads, seed=seed, choose=choose)
    runs = [simulated.submit(job, at) for at, job in drawn]
    last_at, warm_at = drawn[-1][0], drawn[int(warm_up_share * len(drawn))][0]
    list(simulated.run_until(warm_at))
    busy_seconds = -sum(worker.device.busy_seconds_until(warm_at) for worker in workers)
    list(simulated.run_until(last_at))
    busy_seconds += sum(worker.device.busy_seconds_until(last_at) for worker in workers)
    list(simulated.run())

    kept = [run for run in runs if run.arrived_at >= warm_at]
    ended = sum(run.job.num_images for run in runs if warm_at <= run.ended_at <= last_at)
    half_at = (warm_at + last_at) / 2
    half, last = (
        Counter(run.job.tier for run in runs if run.arrived_at <= at < run.ended_at)
        for at in (half_at, last_at)
    )
    interactive = [run for run in kept if run.job.lane == "interactive"]
    bulk = [run.latency_seconds for run in kept if run.job.lane == "bulk"]
    num_steps = sum(worker.device.num_steps for worker in workers)
    return Outcome(
        seconds=_quantiles([run.latency_seconds for run in interactive or kept]),
        seconds_by_tier={
            tier: _quantiles(found)
            for tier in sorted({run.job.tier for run in runs})
            if (found := [run.latency_seconds for run in interactive if run.job.tier == tier])
        },
        mean_seconds=statistics.mean(run.latency_seconds for run in kept),
        bulk_seconds=_quantiles(bulk) if bulk else None,
        busy_share=busy_seconds / max(last_at - warm_at, 1e-9) / len(workers),
        mean_rows=sum(worker.device.num_row_steps for worker in workers) / max(1, num_steps),
        images_per_second=ended / max(last_at - warm_at, 1e-9),
        keeps_up=last.total() - half.total() <= MAX_LAG * len(drawn),
        growth_by_tier={tier: last[tier] - half[tier] for tier in last | half},
    )


@dataclass(frozen=True)
class Tried:
    """A fleet with its outcomes, one for each seed."""

    fleet: Fleet
    outcomes: tuple[Outcome, ...]

    @property
    def p95(self) -> float:
        """The median over the seeds of the p95 of interactive jobs, in seconds."""
        return statistics.median(one.p95 for one in self.outcomes)

    @property
    def seconds(self) -> tuple[float, ...]:
        """The medians over the seeds of p50, p95 and p99."""
        return _medians([one.seconds for one in self.outcomes])

    @property
    def seconds_by_tier(self) -> dict[str, tuple[float, ...]]:
        """The medians over the seeds of p50, p95 and p99 of interactive jobs, by tier."""
        found: dict[str, list[tuple[float, ...]]] = {}
        for one in self.outcomes:
            for tier, seconds in one.seconds_by_tier.items():
                found.setdefault(tier, []).append(seconds)
        return {tier: _medians(each) for tier, each in found.items()}

    @property
    def p95_by_tier(self) -> dict[str, float]:
        """The medians over the seeds of the p95 of interactive jobs, by tier."""
        return {tier: p95 for tier, (_, p95, _) in self.seconds_by_tier.items()}

    @property
    def bulk_seconds(self) -> tuple[float, ...] | None:
        """The medians over the seeds of p50, p95 and p99 of bulk jobs; None without any."""
        found = [one.bulk_seconds for one in self.outcomes if one.bulk_seconds is not None]
        return _medians(found) if found else None

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest p95 of any seed."""
        found = [one.p95 for one in self.outcomes]
        return min(found), max(found)

    @property
    def busy_share(self) -> float:
        """The median over the seeds."""
        return statistics.median(one.busy_share for one in self.outcomes)

    @property
    def mean_rows(self) -> float:
        """The median over the seeds."""
        return statistics.median(one.mean_rows for one in self.outcomes)

    @property
    def images_per_second(self) -> float:
        """The median over the seeds."""
        return statistics.median(one.images_per_second for one in self.outcomes)

    @property
    def keeps_up(self) -> bool:
        """Whether it does with every seed."""
        return all(one.keeps_up for one in self.outcomes)

    @property
    def price_per_image(self) -> float:
        """The price of its devices in an hour, divided by the images that it draws in one."""
        hourly = self.fleet.price_per_month / HOURS_PER_MONTH
        return hourly / (3600 * self.images_per_second) if self.images_per_second else float("inf")


def _medians(seconds: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(statistics.median(each) for each in zip(*seconds, strict=True))


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    p50, p95, p99 = (quantile(values, share) for share in QUANTILES)
    return p50, p95, p99
