"""Interactive work beside bulk work, in the engine alone: `python -m bench.plane.lanes [--only simulated]`.

Four arms on one trace: interactive arrivals of an open loop alone, the same beside bulk work, bulk work
alone, and interactive work that never runs out. `simulated` runs them on the policy's simulator with given
costs, `measured` on the shipped model in turns, on clocks of CPU seconds. It knows no service: no queue, no
rows in Postgres, no files.
"""

import argparse
import bisect
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice
from pathlib import Path

import torch

from bench.amounts import QUICK
from bench.clock import Part, WorkClock, in_turns
from bench.figures import Figure, figure_of, table
from bench.latency import p95
from bench.shipped import Bench, load_bench
from bench.workload import DueRequest, mixed_requests, num_row_steps, poisson
from catalogue.lanes import Lane
from engine.engine import Engine
from engine.pipelines.steady_stack import on_steady_stack
from engine.policy.buckets import MULTIPLES_OF_FOUR
from engine.policy.candidate import BatchKey
from engine.policy.policy import BULK_PATIENCE_SECONDS, Policy
from engine.policy.simulation import SimulatedDevice, SimulatedGeneration
from engine.request import GeneratedImage, GenerationRequest

SIDE = 128
RATE = 1.0  # interactive arrivals a second
NUM_REQUESTS = 300
MAX_SATURATED_SECONDS = 60.0
BULK_PER_ROW = 1.5  # bulk generations in the engine for each row of the cap: some wait for text or pixels
KEY = BatchKey("simulated", 16, 16)


@dataclass
class Outcome:
    """What one arm did until its last arrival, or for its seconds."""

    latencies: list[float] = field(default_factory=list)  # of interactive work
    bulk_row_steps: int = 0
    num_bulk_images: int = 0
    bulk_wait_seconds: float = 0.0  # the longest from submit to the first step
    mean_rows: float = 0.0  # of a step batch
    busy_share: float = 0.0
    seconds: float = 0.0

    @property
    def bulk_rate(self) -> float:
        """Row-steps of ended bulk images a second: images differ 25 times in their cost."""
        return self.bulk_row_steps / self.seconds


@dataclass(frozen=True)
class Arm:
    """Interactive `arrivals`, beside `num_flooding` generations of a lane at any time, for `seconds`."""

    arrivals: Sequence[DueRequest] = ()
    num_flooding: int = 0
    flooding_lane: Lane = "bulk"
    seconds: float = 0.0  # until the last arrival, if there is any

    @property
    def ends_at(self) -> float:
        """When nothing more is submitted."""
        return self.arrivals[-1].seconds if self.arrivals else self.seconds

    def flood(self, seed: int) -> Iterator[GenerationRequest]:
        """Requests of the mix without end."""
        for number in count():
            for request in mixed_requests(100, SIDE, seed * 1000 + number + 1):
                yield replace(request, lane=self.flooding_lane)


def arms_of(max_rows: int, rate: float, num_requests: int, seed: int) -> tuple[Arm, Arm, Arm, Arm]:
    """Interactive alone, beside bulk, bulk alone, and interactive work without end."""
    arrivals = poisson(mixed_requests(num_requests, SIDE, seed), rate, seed)
    flooding = round(BULK_PER_ROW * max_rows)
    seconds = min(MAX_SATURATED_SECONDS, num_requests / rate / 2)
    return (
        Arm(arrivals),
        Arm(arrivals, flooding),
        Arm(num_flooding=flooding, seconds=seconds),
        Arm(num_flooding=flooding, flooding_lane="interactive", seconds=seconds),
    )


def figures_of(runs: Sequence[Sequence[Outcome]], suffix: str, reason: str) -> list[Figure]:
    """The figures of the runs, each the outcomes of `arms_of`."""
    ratios, medians, shares, waits, rows = [], [], [], [], []
    for idle, beside, bulk, saturated in runs:
        ratios.append(p95(beside.latencies) / p95(idle.latencies))
        medians.append(_median(beside.latencies) / _median(idle.latencies))
        shares.append(beside.bulk_rate / (bulk.bulk_rate * (1 - idle.busy_share)))
        waits.append(beside.bulk_wait_seconds)
        rows.append(bulk.mean_rows / saturated.mean_rows)
    load = f"{reason}; interactive work alone takes {_median([run[0].busy_share for run in runs]):.2f}"
    patience = BULK_PATIENCE_SECONDS
    return [
        figure_of(f"interactive_beside_bulk{suffix}", ratios, 1.3, 1.0, load, is_at_most=True),
        figure_of(f"interactive_p50_beside_bulk{suffix}", medians, None, 1.0, load, is_at_most=True),
        figure_of(f"bulk_beside_interactive{suffix}", shares, 0.7, None, f"{reason}; it also gets free rows"),
        figure_of(f"bulk_wait_seconds{suffix}", waits, patience, None, "in the engine", is_at_most=True),
        figure_of(f"bulk_rows{suffix}", rows, 0.95, 1.0, f"{reason}; as many rows as interactive work"),
    ]


@dataclass(frozen=True)
class Costs:
    """Costs of a device: a profile's seconds by bucket, and what each row takes beside the forward pass."""

    bucket_seconds: Mapping[int, float]
    encode_seconds_each: float
    decode_seconds_each: float
    row_seconds: float = 0.0  # of pipelines' own code, which padding does not need

    @property
    def max_rows(self) -> int:
        """The cap."""
        return max(self.bucket_seconds)

    def profiled(self, _: BatchKey, num_rows: int) -> float:
        """Seconds of a step as a profile has them: of the smallest measured row count that holds them."""
        rows = sorted(self.bucket_seconds)
        return self.bucket_seconds[rows[bisect.bisect_left(rows, min(num_rows, rows[-1]))]]

    def step_seconds(self, key: BatchKey, num_rows: int) -> float:
        """Seconds of a step as it runs."""
        bucket = MULTIPLES_OF_FOUR.rows(num_rows)
        return self.profiled(key, num_rows) - self.row_seconds * (bucket - num_rows)

    def cached_share(self, _: BatchKey) -> float:
        """No step is cached."""
        return 1.0

    def encode_seconds(self, _: BatchKey) -> float:
        """Seconds of the texts of one generation."""
        return self.encode_seconds_each

    def decode_seconds(self, _: BatchKey) -> float:
        """Seconds of one image."""
        return self.decode_seconds_each


SHARED_CORE = Costs({4: 0.0211, 8: 0.0383, 12: 0.059, 16: 0.0801}, 0.0014, 0.0151, 0.0004)
"""The shipped model at 128² on one core: docs/explanation/what-stands-beside-a-step.md."""
WITH_A_KNEE = Costs({4: 0.050, 8: 0.053, 12: 0.070, 16: 0.090}, 0.004, 0.060, 0.0004)
"""A device on which up to eight rows take about as long as four, as on a GPU. Not measured on any."""


def simulated(
    costs: Costs, suffix: str, *, rate: float = RATE, num_requests: int = NUM_REQUESTS, seeds: Sequence[int]
) -> list[Figure]:
    """The figures on the simulator with these costs."""
    runs = [
        [_simulate(costs, arm, seed) for arm in arms_of(costs.max_rows, rate, num_requests, seed)]
        for seed in seeds
    ]
    return figures_of(runs, suffix, "simulated")


def _simulate(costs: Costs, arm: Arm, seed: int) -> Outcome:
    found = Outcome()
    steps: list[int] = []
    busy = [0.0]

    class Counted:
        """The costs, summed up."""

        cached_share = costs.cached_share

        def step_seconds(self, key: BatchKey, num_rows: int) -> float:
            steps.append(num_rows)
            return self._add(costs.step_seconds(key, num_rows))

        def encode_seconds(self, key: BatchKey) -> float:
            return self._add(costs.encode_seconds(key))

        def decode_seconds(self, key: BatchKey) -> float:
            return self._add(costs.decode_seconds(key))

        def _add(self, seconds: float) -> float:
            busy[0] += seconds
            return seconds

    policy = Policy(lambda _: costs.max_rows, step_seconds=costs.profiled)
    device = SimulatedDevice(policy, Counted())
    interactive = {_generation(one.request, one.seconds): one for one in arm.arrivals}
    for generation, arrival in interactive.items():
        device.submit(generation, arrival.seconds)
    flood = arm.flood(seed)
    flooding = {_generation(request, 0.0): request for request in islice(flood, arm.num_flooding)}
    for generation in flooding:
        device.submit(generation, 0.0)
    left = len(interactive)
    while (left or device.now < arm.ends_at) and (ended := device.advance()):
        for one in ended:
            if one in interactive:
                left -= 1
                found.latencies.append(one.ended_at - one.submitted_at)
                continue
            request = flooding.pop(one)
            _count_bulk(
                found, request, one.begun_at - one.submitted_at, is_in_time=one.ended_at <= arm.ends_at
            )
            if device.now < arm.ends_at:
                request = next(flood)
                new = _generation(request, device.now)
                flooding[new] = request
                device.submit(new, device.now)
    found.mean_rows = sum(steps) / len(steps)
    found.seconds, found.busy_share = arm.ends_at, busy[0] / device.now
    return found


def _generation(request: GenerationRequest, at: float) -> SimulatedGeneration:
    num_rows = 2 if request.guidance_scale > 1 else 1
    steps = request.num_inference_steps
    return SimulatedGeneration(KEY, steps, num_rows, steps, lane=request.lane, submitted_at=at)


def _count_bulk(found: Outcome, request: GenerationRequest, wait_seconds: float, *, is_in_time: bool) -> None:
    found.bulk_wait_seconds = max(found.bulk_wait_seconds, wait_seconds)
    if is_in_time:
        found.bulk_row_steps += num_row_steps(request)
        found.num_bulk_images += 1


def measured(
    bench: Bench, *, rate: float = RATE, num_requests: int = NUM_REQUESTS, seeds: Sequence[int]
) -> list[Figure]:
    """The figures of the engine on the shipped model, its arms in turns on one thread."""
    runs = []
    for seed in seeds:
        arms = arms_of(bench.max_rows(SIDE), rate, num_requests, seed)
        runs.append(in_turns([_running(bench, arm, seed) for arm in arms]))
        print([_summary(one) for one in runs[-1]], flush=True)
    return figures_of(runs, "_engine", "engine alone, CPU seconds")


def _summary(found: Outcome) -> str:
    latency = f"p95 {p95(found.latencies):.2f} s, " if found.latencies else ""
    return (
        f"{latency}busy {found.busy_share:.2f}, {found.mean_rows:.1f} rows, {found.num_bulk_images} of bulk"
    )


def _running(bench: Bench, arm: Arm, seed: int) -> Part[Outcome]:
    return partial(_run, bench, arm, seed)


def _run(bench: Bench, arm: Arm, seed: int, clock: WorkClock) -> Generator[None, None, Outcome]:
    found, rows, skipped, failures = Outcome(), list[int](), 0.0, list[BaseException]()
    ended: deque[tuple[GenerationRequest, float | None, GeneratedImage]] = deque()
    engine = Engine(
        bench.loaded.models,
        bench.loaded.row_limits,
        determinism=bench.loaded.determinism,
        clock=clock,
        step_seconds=bench.profiles.step_seconds,
        on_step=lambda _model, num_rows, _seconds, _reason: rows.append(num_rows),
    )

    def submit(request: GenerationRequest, due_at: float | None = None) -> None:
        def note(future: "Future[GeneratedImage]") -> None:
            if error := future.exception():
                failures.append(error)
            else:
                latency = None if due_at is None else clock() - begun_at - due_at
                ended.append((request, latency, future.result()))

        engine.submit(request).future.add_done_callback(note)

    begun_at, upcoming, flood, left = clock(), deque(arm.arrivals), arm.flood(seed), len(arm.arrivals)
    try:
        for _ in range(arm.num_flooding):
            submit(next(flood))
        while left or clock() - begun_at < arm.ends_at:
            while upcoming and upcoming[0].seconds <= clock() - begun_at:
                arrival = upcoming.popleft()
                submit(arrival.request, arrival.seconds)
            if engine.is_idle:
                skipped += begun_at + upcoming[0].seconds - clock()
                clock.skip_to(begun_at + upcoming[0].seconds)
            else:
                engine.tick()
            for failure in failures:
                raise failure
            while ended:
                request, latency, image = ended.popleft()
                if latency is not None:
                    left -= 1
                    found.latencies.append(latency)
                    continue
                is_in_time = clock() - begun_at <= arm.ends_at
                _count_bulk(found, request, image.timings.waiting_seconds, is_in_time=is_in_time)
                if is_in_time:
                    submit(next(flood))
            yield
        seconds = clock() - begun_at
        found.mean_rows, found.seconds = sum(rows) / len(rows), arm.ends_at
        found.busy_share = 1 - skipped / seconds
        return found
    finally:
        engine.stop()


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


@on_steady_stack
def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=["simulated", "measured"], help="some of the figures")
    parser.add_argument("--requests", type=int, default=NUM_REQUESTS, help="interactive ones of each arm")
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    amounts = {"num_requests": arguments.requests, "seeds": arguments.seeds}
    parts = arguments.only or ("simulated", "measured")
    if "simulated" in parts:
        found = simulated(SHARED_CORE, "_simulated", rate=arguments.rate, **amounts)
        found += simulated(WITH_A_KNEE, "_simulated_knee", rate=arguments.rate / 2, **amounts)
        print(table(found), flush=True)
    if "measured" in parts:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        bench = load_bench(replace(QUICK, profile_seconds=3), Path("bench-output") / "part" / "curves.json")
        print(table(measured(bench, rate=arguments.rate, **amounts)))


if __name__ == "__main__":
    main()
