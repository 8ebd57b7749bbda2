"""What it saves that workers poll later the more they hold: `python -m bench.plan.handing_out`.

Serves the same arrivals, of guided images of one size, on a fleet of equal workers by the rules of
`engine.policy.free_workers`: any free slot, the service's own, and the worker with the fewest jobs. It is a
simulation on published or measured profiles.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.plan.fleets import Fleet, Pool
from bench.plan.outcome import simulate
from bench.plan.profiles import PlanProfile, profile_of
from bench.plan.traffic import JobClass, Traffic
from engine.policy.free_workers import Choose, any_free, fewest_jobs, first_to_poll

PUBLISHED = ("h200-qwen-image-512", "h200-qwen-image-1024")
LOADS = (0.3, 0.5, 0.7)
"""Of what the fleet draws in full step batches."""
RULES: dict[str, Choose] = {
    "any free slot": any_free,
    "the first to poll": first_to_poll,
    "the fewest jobs": fewest_jobs,
}
NUM_WORKERS = 16
NUM_STEPS = 50
SEEDS = (1, 2, 3, 4, 5)
TIER = "any"


class Served(NamedTuple):
    """A rule at one load: p50 and p95 of the latency in seconds, of each seed."""

    rule: str
    load: float
    p50s: list[float]
    p95s: list[float]

    @property
    def p95(self) -> float:
        """The median of the seeds."""
        return statistics.median(self.p95s)

    def as_words(self) -> str:
        """The medians, and the range of p95."""
        spread = f"{min(self.p95s):.3g} to {max(self.p95s):.3g}"
        return f"{statistics.median(self.p50s):.3g} / {self.p95:.3g} ({spread})"


def compare(
    found: PlanProfile,
    num_workers: int = NUM_WORKERS,
    num_jobs: int | None = None,
    seeds: Sequence[int] = SEEDS,
) -> Iterator[Served]:
    """Every rule at every load, on workers at the profile's own cap with the slots that it gives them."""
    profile = found.profile
    cap = max(profile.max_rows, profile.num_guided_rows)
    pool = Pool({TIER: found}, {TIER: cap}, num_workers)
    side = {"width": profile.key.width, "height": profile.key.height}
    jobs = (JobClass(tier=TIER, num_inference_steps=NUM_STEPS, **side),)
    one = Traffic(jobs_per_second=1.0, jobs=jobs)
    for name, choose in RULES.items():
        for load in LOADS:
            traffic = one.at(load * num_workers / pool.device_seconds(one))
            outcomes = [
                simulate(Fleet((pool,)), traffic, seed, num_jobs=num_jobs, choose=choose) for seed in seeds
            ]
            yield Served(name, load, [one.seconds[0] for one in outcomes], [one.p95 for one in outcomes])


def report(found: PlanProfile, num_workers: int) -> Iterator[str]:
    """A Markdown table of one kind of device."""
    device = f"**{found.name}**, {found.device}, {found.origin}"
    yield f"{device}, {num_workers} workers, images of {NUM_STEPS} steps, medians of {len(SEEDS)} seeds"
    yield ""
    yield "| a job goes to |" + "".join(f" p50 / p95 s at load {load:g} |" for load in LOADS)
    yield "|---" * (1 + len(LOADS)) + "|"
    served = list(compare(found, num_workers))
    for name in RULES:
        cells = "".join(f" {one.as_words()} |" for one in served if one.rule == name)
        yield f"| {name} |{cells}"
    yield ""


def main() -> None:
    """Print a table for each profile."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--profile", nargs="*", default=PUBLISHED, help="published names, or files")
    parser.add_argument("--workers", type=int, default=NUM_WORKERS)
    asked = parser.parse_args()
    for name in asked.profile:
        print("\n".join(report(profile_of(name, TIER, Path()), asked.workers)))


if __name__ == "__main__":
    main()
