"""A simulated day of a fleet that is scaled.

    python -m bench.autoscaling [--workers N] [--hours H] [--only PART ...] [--out FILE]

The rules are those of deploy/kubernetes/keda, the policy is the engine's, the device is a published curve.
Parts: `day` compares them with a fixed fleet and with scaling by queue length, `steady` and `zero` look for
flapping and at a start from none, `thresholds` and `starts` vary the rules and the cluster. It draws nothing.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import yaml

from bench.autoscaling.day import Conditions, Day, run_day
from bench.autoscaling.device import H200_512, DeviceCurve
from bench.autoscaling.rules import Rules, Trigger, rules_of
from bench.autoscaling.traffic import Arrival, Burst, Traffic, arrivals
from bench.configuration import ROOT
from bench.figures import Figure, figure_of, quantile
from bench.parts import WRITTEN_WHERE, output_of, run_parts

FILE = "autoscaling.json"
MANIFEST = ROOT / "deploy" / "kubernetes" / "keda" / "worker-sd.yml"
CURVE = H200_512
PEAK_LOAD = 0.8
"""The share of the fixed fleet that the peak of the day keeps busy."""
FULL_SHARE = 0.375
"""The threshold of interactive work, as a share of the device seconds of a full step batch: it is to be three
quarters full of images that on average have half of their steps left."""
QUEUED_JOBS_PER_WORKER = 5.0
MAX_REVERSALS_AN_HOUR = 0.5
"""Under a constant load with noise; more often is flapping."""
USUAL = Conditions()
HOUR = 3600.0


@dataclass(frozen=True)
class Sizes:
    """How many workers the peak needs, the hours of the day, and the seed of its traffic."""

    num_workers: int = 1000
    hours: float = 6.0
    seed: int = 1

    def traffic(self, *, night: float = 0.1, burst: bool = True) -> Traffic:
        """A day with its peak in the middle, and twice its traffic for ten minutes in the afternoon."""
        seconds = self.hours * HOUR
        peak = PEAK_LOAD * self.num_workers / (CURVE.image_seconds * Traffic(1).mean_images)
        wave = Burst(0.6 * seconds, 600.0, 2.0) if burst else None
        return Traffic(peak, seconds, night=night, burst=wave)


def main() -> None:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=Sizes.num_workers, help="those that the peak needs")
    parser.add_argument("--hours", type=float, default=Sizes.hours, help="the length of the day")
    parser.add_argument("--seed", type=int, default=Sizes.seed)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some of its parts")
    parser.add_argument("--out", type=Path, help=WRITTEN_WHERE.format(file=FILE))
    asked = parser.parse_args()
    sizes = Sizes(asked.workers, asked.hours, asked.seed)
    out = asked.out or output_of(FILE, asked.only, PARTS, is_small=sizes != Sizes())
    print(f"{CURVE.name}: an image takes {CURVE.image_seconds:.1f} device seconds")
    run_parts({name: partial(PARTS[name], sizes) for name in asked.only}, out)


def manifest_rules(max_workers: int) -> Rules:
    """The rules of the manifest, for a fleet of other size."""
    return replace(rules_of(yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))), max_workers=max_workers)


def by_queue_length(rules: Rules) -> Rules:
    """The same windows and limits, on the number of queued jobs alone."""
    return replace(rules, triggers=(Trigger("queue-length", "", QUEUED_JOBS_PER_WORKER),))


def with_share(rules: Rules, share: float, curve: DeviceCurve = CURVE) -> Rules:
    """The rules with another threshold of interactive work."""
    first, *others = rules.triggers
    return replace(rules, triggers=(replace(first, threshold=share * curve.full_seconds), *others))


def day(sizes: Sizes) -> Iterator[Figure]:
    """The day of three fleets: as many workers as the peak needs, those of the manifest, by queue length."""
    jobs = list(arrivals(sizes.traffic(), sizes.seed))
    rules = manifest_rules(2 * sizes.num_workers)
    yield from _of_day("fixed", jobs, sizes, None, Conditions(num_workers=sizes.num_workers))
    yield from _of_day("device_seconds", jobs, sizes, rules)
    yield from _of_day("queue_length", jobs, sizes, by_queue_length(rules))


def thresholds(sizes: Sizes) -> Iterator[Figure]:
    """The same day at other thresholds."""
    jobs = list(arrivals(sizes.traffic(), sizes.seed))
    for share in (0.2, 0.3, 0.375, 0.5, 0.75, 1.0):
        rules = with_share(manifest_rules(2 * sizes.num_workers), share)
        yield from _of_day(f"share_{share:g}", jobs, sizes, rules)


def starts(sizes: Sizes) -> Iterator[Figure]:
    """The same day with workers that start sooner, and later."""
    jobs = list(arrivals(sizes.traffic(), sizes.seed))
    for seconds in (30.0, 120.0, 300.0, 600.0):
        rules = manifest_rules(2 * sizes.num_workers)
        yield from _of_day(f"start_{seconds:.0f}_s", jobs, sizes, rules, Conditions(start_seconds=seconds))


def steady(sizes: Sizes) -> Iterator[Figure]:
    """Flapping: the rate of the peak without a wave, with noise, after the first hour."""
    traffic = sizes.traffic(night=1.0, burst=False)
    jobs = arrivals(traffic, sizes.seed)
    found = run_day(CURVE, jobs, traffic.day_seconds, manifest_rules(2 * sizes.num_workers), USUAL)
    hours = sizes.hours - 1
    numbers = [number for at, number in found.workers if at > HOUR] or [found.num_workers(HOUR)]
    reason = (
        f"{found.num_changes(HOUR) / hours:.1f} changes an hour, {min(numbers)} to {max(numbers)} workers"
    )
    samples = [found.num_reversals(HOUR) / hours]
    yield figure_of("reversals_an_hour_steady", samples, MAX_REVERSALS_AN_HOUR, 0.0, reason, is_at_most=True)


def zero(sizes: Sizes) -> Iterator[Figure]:
    """One job, an hour of quiet, one job: when there is no worker, and when the image is there again."""
    jobs = [Arrival(0.0, 1), Arrival(HOUR, 1)]
    conditions = Conditions(seed=sizes.seed)
    found = run_day(CURVE, jobs, 2 * HOUR, manifest_rules(20), conditions)
    ends = [at for at, number in found.workers if number == 0 and at > 0]
    last = max(found.runs, key=lambda run: run.arrived_at)
    alone = CURVE.num_steps * CURVE.steps.at(2)
    reason = f"{conditions.start_seconds:.0f} s are the start of a worker, {alone:.0f} s the image"
    yield figure_of("seconds_from_zero", [last.latency_seconds], None, None, reason)
    quiet = ends[0] - min(run.ended_at for run in found.runs)
    yield figure_of("seconds_to_zero", [quiet], None, None, "from the end of the last job to no worker")


PARTS: Mapping[str, Callable[[Sizes], Iterator[Figure]]] = {
    "day": day,
    "steady": steady,
    "zero": zero,
    "thresholds": thresholds,
    "starts": starts,
}


def _of_day(
    name: str, jobs: list[Arrival], sizes: Sizes, rules: Rules | None, conditions: Conditions = USUAL
) -> Iterator[Figure]:
    begun_at = time.process_time()
    found = run_day(CURVE, jobs, sizes.hours * HOUR, rules, conditions)
    yield from figures_of(name, found, sizes.hours, conditions, time.process_time() - begun_at)


def figures_of(
    name: str, found: Day, hours: float, conditions: Conditions, cpu_seconds: float
) -> Iterator[Figure]:
    """The waits, the costs and the restlessness of one day."""
    waits = found.waits()
    p50, p95, p99 = (quantile(waits, share) for share in (0.5, 0.95, 0.99))
    latencies = [run.latency_seconds for run in found.runs]
    middle, slow = quantile(latencies, 0.5), quantile(latencies, 0.95)
    reason = (
        f"p50 {p50:.1f} s, p99 {p99:.1f} s; latency p50 {middle:.0f} s, p95 {slow:.0f} s; {len(waits)} jobs"
    )
    yield figure_of(f"wait_p95_seconds_{name}", [p95], None, None, reason)
    needed = CURVE.image_seconds * sum(run.job.num_images for run in found.runs)
    most = max(number for _, number in found.workers)
    hours_used = found.worker_seconds / HOUR
    reason = f"device hours {hours_used:.0f}; at most {most} workers; simulated in {cpu_seconds:.0f} s of CPU"
    yield figure_of(f"used_vs_needed_{name}", [found.worker_seconds / needed], None, None, reason)
    reason = f"{found.num_changes() / hours:.1f} changes an hour"
    yield figure_of(f"reversals_an_hour_{name}", [found.num_reversals() / hours], None, None, reason)
    cut = found.num_cut(conditions.drain_seconds)
    reason = (
        f"jobs that a drain of {conditions.drain_seconds:.0f} s sends back, of {len(found.drains)} drains"
    )
    yield figure_of(f"jobs_sent_back_{name}", [float(cut)], None, None, reason)


if __name__ == "__main__":
    main()
