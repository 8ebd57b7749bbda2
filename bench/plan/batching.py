"""What step batches, dynamic batches and none give on one device: `python -m bench.plan.batching`.

Each curve of step seconds by rows, published or measured, is served by three strategies on the same arrivals
of one mix: `ours` with the engine's policy, batches of equal steps that run to their end, and one image at a
time. It does not know fleets: it is one device.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.arrivals import StepTable, Work, arrivals
from bench.figures import quantile
from bench.plan.profiles import PlanProfile, measured, profile_of
from bench.plan.recommendation import verdict
from bench.simulated_strategies import Strategy, keyed_dynamic, one_at_a_time, ours
from bench.simulator import in_time_share

PUBLISHED = ("h200-qwen-image-512", "h200-qwen-image-1024")
STRATEGIES: dict[str, Strategy] = {
    "step batches": ours,
    "dynamic batches": keyed_dynamic(0.0),
    "one at a time": one_at_a_time,
}
LOADS = (0.3, 0.5, 0.7, 0.9)
"""Of the images a second that the device draws in full step batches."""
SATURATION = 20.0
NUM_REQUESTS = 4000
WARM_UP_SHARE = 0.1


@dataclass(frozen=True)
class Served:
    """A strategy on a device at one load; no seconds where more arrives than it can draw."""

    load: float
    p50: float | None
    p95: float | None
    in_time: float | None  # the share within three times the time alone


@dataclass(frozen=True)
class Compared:
    """A strategy on a device: images a second with work always waiting, and what it does at each load."""

    strategy: str
    images_per_second: float
    served: tuple[Served, ...]


def work_of(found: PlanProfile) -> Work:
    """The device of a profile, with the benchmarks' mix of steps.

    Half of the images have guidance. All have it if nothing is known of fewer rows, none if the model takes
    the scale as an input.
    """
    profile, steps = found.profile, found.simulated.steps
    counts = [step.num_rows for step in steps]
    scales = {1.0: 0.5, 4.0: 0.5}
    if profile.num_guided_rows == 1:
        scales = {1.0: 1.0}
    elif counts[0] >= profile.num_guided_rows:
        scales = {4.0: 1.0}
    return Work(
        tables={16: StepTable({step.num_rows: step.seconds for step in steps})},
        max_rows=max(profile.max_rows, profile.num_guided_rows),
        image_seconds=profile.encode_seconds + profile.decode_seconds,
        guidance_scales=scales,
        bucket=lambda num_rows: next((count for count in counts if count >= num_rows), num_rows),
        is_solo_padded=True,
    )


def compare(work: Work, *, num_requests: int = NUM_REQUESTS, seed: int = 1) -> Iterator[Compared]:
    """Every strategy on the device of `work`."""
    for name, strategy in STRATEGIES.items():
        trace = arrivals(work, SATURATION, num_requests, seed)
        strategy(work, trace)
        rate = num_requests / max(one.ended_at for one in trace)
        served = tuple(
            _served(work, strategy, load, num_requests, seed)
            if load * work.capacity() < rate
            else Served(load, None, None, None)
            for load in LOADS
        )
        yield Compared(name, rate, served)


def _served(work: Work, strategy: Strategy, load: float, num_requests: int, seed: int) -> Served:
    trace = arrivals(work, load, num_requests, seed)
    strategy(work, trace)
    kept = trace[int(WARM_UP_SHARE * num_requests) :]
    seconds = [one.latency_seconds for one in kept]
    return Served(load, quantile(seconds, 0.5), quantile(seconds, 0.95), in_time_share(kept))


def report(found: PlanProfile, *, num_requests: int = NUM_REQUESTS) -> Iterator[str]:
    """A Markdown table of one device, with its source above it."""
    work = work_of(found)
    yield f"**{found.name}**, {found.device}, {found.origin}: {found.source or 'measured here'}"
    yield ""
    yield verdict(found.name, found)
    yield ""
    loads = "".join(f" p50 / p95 s at {work.capacity() * load:.2g} images/s |" for load in LOADS)
    yield f"| strategy | images/s at most |{loads}"
    yield "|---" * (2 + len(LOADS)) + "|"
    for one in compare(work, num_requests=num_requests):
        cells = "".join(
            " its queue grows |" if each.p95 is None else f" {each.p50:.3g} / {each.p95:.3g} |"
            for each in one.served
        )
        yield f"| {one.strategy} | {one.images_per_second:.3g} |{cells}"
    yield ""


def main() -> None:
    """Print a table for each profile."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--profile", nargs="*", default=PUBLISHED, help="published names, or files")
    parser.add_argument("--measured", type=Path, help="a profiles folder, of which each tier is added")
    parser.add_argument("--requests", type=int, default=NUM_REQUESTS)
    asked = parser.parse_args()
    profiles = [profile_of(name, "any", Path()) for name in asked.profile]
    profiles += [found[0] for found in measured(asked.measured).values()] if asked.measured else []
    for found in profiles:
        print("\n".join(report(found, num_requests=asked.requests)))


if __name__ == "__main__":
    main()
