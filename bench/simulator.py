"""Figures of the policy against other strategies, under a simulated clock: `python -m bench.simulator`.

Owns the figures `p95_gain`, `slowdown_gain`, `goodput_gain`, `goodput_share` and `fairness`, each over
several seeds. The step table is an argument: a measured one gives the figures of that machine, the default is
that of `bench/arrivals.py`. It does not know how a strategy serves.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

from bench.arrivals import IN_TIME_SLOWDOWN, Arrival, StepTable, Work, arrivals
from bench.figures import quantile
from bench.simulated_strategies import (
    Strategy,
    continuous_fifo,
    continuous_shortest,
    keyed_dynamic,
    one_at_a_time,
    ours,
    padded_dynamic,
    with_deadlines,
)

NUM_REQUESTS = 20_000
NUM_GOODPUT_REQUESTS = 4_000
SEEDS = (1, 2, 3)
TIMEOUTS_SECONDS = (0.0, 0.05, 0.2)
WARM_UP_SHARE = 0.05  # of a trace: its first requests find an empty device
ATTAINMENT = 0.9
GOODPUT_ROUNDS = 7  # halvings of the load: to 1 % of the capacity
LOADS = (0.3, 0.5, 0.7, 0.85)


class Figure(NamedTuple):
    """A median over seeds, its spread, and the value of each seed."""

    value: float
    low: float
    high: float
    samples: tuple[float, ...]


def p95_gain(
    work: Work,
    load: float = 0.7,
    seeds: Sequence[int] = SEEDS,
    num_requests: int = NUM_REQUESTS,
    strategy: Strategy = ours,
) -> Figure:
    """p95 latency of step-keyed dynamic batching at its best timeout, divided by that of `strategy`."""
    return _gain(p95_latency, strategy, work, load, seeds, num_requests)


def slowdown_gain(
    work: Work,
    load: float = 0.7,
    seeds: Sequence[int] = SEEDS,
    num_requests: int = NUM_REQUESTS,
    strategy: Strategy = ours,
) -> Figure:
    """p95 slowdown of step-keyed dynamic batching at its best timeout, divided by that of `strategy`."""
    return _gain(p95_slowdown, strategy, work, load, seeds, num_requests)


def _gain(
    measure: Callable[[Sequence[Arrival]], float],
    strategy: Strategy,
    work: Work,
    load: float,
    seeds: Sequence[int],
    num_requests: int,
) -> Figure:
    return _figure(
        min(measure(served(work, keyed, load, seed, num_requests)) for keyed in keyed_strategies())
        / measure(served(work, strategy, load, seed, num_requests))
        for seed in seeds
    )


def goodput_share(
    work: Work, seeds: Sequence[int] = SEEDS, num_requests: int = NUM_GOODPUT_REQUESTS
) -> Figure:
    """The load, as a share of the capacity, at which ours, with deadlines, still serves 90 % in time."""
    return _figure(goodput(work, with_deadlines(ours), seed, num_requests) for seed in seeds)


def goodput_gain(
    work: Work, seeds: Sequence[int] = SEEDS, num_requests: int = NUM_GOODPUT_REQUESTS
) -> Figure:
    """Our goodput divided by that of step-keyed dynamic batching at its best timeout, both with deadlines."""
    return _figure(
        goodput(work, with_deadlines(ours), seed, num_requests)
        / max(goodput(work, with_deadlines(strategy), seed, num_requests) for strategy in keyed_strategies())
        for seed in seeds
    )


def fairness(
    work: Work, load: float = 0.85, seeds: Sequence[int] = SEEDS, num_requests: int = NUM_REQUESTS
) -> Figure:
    """p99 slowdown of the longest class, ours divided by continuous batching first come, first served."""
    longest = max(work.step_counts)
    return _figure(
        p99_slowdown(served(work, ours, load, seed, num_requests), longest)
        / p99_slowdown(served(work, continuous_fifo, load, seed, num_requests), longest)
        for seed in seeds
    )


def batching_gain(work: Work) -> float:
    """The device's capacity divided by that of one request at a time on the bare model."""
    seconds = sum(
        share * scale_share * work.bare_seconds(num_steps, 2 if scale > 1 else 1, side) * side_share
        for num_steps, share in work.step_counts.items()
        for scale, scale_share in work.guidance_scales.items()
        for side, side_share in work.sizes.items()
    )
    return work.capacity() * seconds


class Measure(Protocol):
    """One of the figures."""

    def __call__(self, work: Work, *, seeds: Sequence[int] = SEEDS, num_requests: int = ...) -> Figure:
        """Its median and spread over `seeds`, on traces of `num_requests` requests."""


FIGURES: dict[str, Measure] = {  # those of another strategy are for comparison
    "p95_gain": p95_gain,
    "fifo_p95_gain": partial(p95_gain, strategy=continuous_fifo),
    "slowdown_gain": slowdown_gain,
    "shortest_slowdown_gain": partial(slowdown_gain, strategy=continuous_shortest),
    "goodput_gain": goodput_gain,
    "goodput_share": goodput_share,
    "fairness": fairness,
}


def keyed_strategies() -> list[Strategy]:
    """Step-keyed dynamic batching at each of `TIMEOUTS_SECONDS`."""
    return [keyed_dynamic(seconds) for seconds in TIMEOUTS_SECONDS]


def served(
    work: Work, strategy: Strategy, load: float, seed: int, num_requests: int = NUM_REQUESTS
) -> list[Arrival]:
    """The trace of `seed` at `load`, served by `strategy`, without its warm-up."""
    trace = arrivals(work, load, num_requests, seed)
    strategy(work, trace)
    return trace[int(WARM_UP_SHARE * num_requests) :]


def goodput(work: Work, strategy: Strategy, seed: int, num_requests: int = NUM_GOODPUT_REQUESTS) -> float:
    """The highest load, as a share of the capacity, at which `strategy` serves 90 % in time.

    Found by bisection: attainment falls as load rises, except for the noise of a trace.
    """
    low, high = 0.0, 1.0
    for _ in range(GOODPUT_ROUNDS):
        load = (low + high) / 2
        if in_time_share(served(work, strategy, load, seed, num_requests)) >= ATTAINMENT:
            low = load
        else:
            high = load
    return low


def in_time_share(trace: Sequence[Arrival]) -> float:
    """The share of requests that were served within 3 times their solo time."""
    return sum(arrival.slowdown <= IN_TIME_SLOWDOWN for arrival in trace) / len(trace)


def p95_latency(trace: Sequence[Arrival]) -> float:
    """The 95th percentile of latency, in seconds."""
    return quantile([arrival.latency_seconds for arrival in trace], 0.95)


def p95_slowdown(trace: Sequence[Arrival]) -> float:
    """The 95th percentile of latency divided by solo time."""
    return quantile([arrival.slowdown for arrival in trace], 0.95)


def p99_slowdown(trace: Sequence[Arrival], num_steps: int) -> float:
    """The 99th percentile of latency divided by solo time, of requests of `num_steps` steps."""
    return quantile([arrival.slowdown for arrival in trace if arrival.num_steps == num_steps], 0.99)


def _figure(values: Iterable[float]) -> Figure:
    samples = tuple(values)
    return Figure(statistics.median(samples), min(samples), max(samples), samples)


def main() -> None:
    """Print the results of every strategy at every load, then the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="the first of three; drawn and printed if it is not given")
    parser.add_argument("--max-rows", type=int, default=8)
    parser.add_argument("--table", help="measured step seconds: 1:0.0134,2:0.021,4:0.0263,8:0.038")
    arguments = parser.parse_args()
    seed = random.randrange(10_000) if arguments.seed is None else arguments.seed
    work = Work(max_rows=arguments.max_rows)
    if arguments.table:
        points = dict(point.split(":") for point in arguments.table.split(","))
        table = StepTable({int(rows): float(seconds) for rows, seconds in points.items()})
        work = Work(tables={16: table}, max_rows=arguments.max_rows)
    print(
        f"seed {seed}, capacity {work.capacity():.2f} images/s, {NUM_REQUESTS} requests a strategy and load"
    )
    for is_padded, unit in ((True, "on our engine, padded"), (False, "on the bare model")):
        print(f"alone is {unit}")
        work = replace(work, is_solo_padded=is_padded)
        _print_loads(work, seed)
        for name, figure in FIGURES.items():
            started_at = time.perf_counter()
            value, low, high, _ = figure(work, seeds=(seed, seed + 1, seed + 2))
            print(
                f"{name:14} {value:6.2f} ({low:.2f} to {high:.2f}), {time.perf_counter() - started_at:.0f} s"
            )


def _print_loads(work: Work, seed: int) -> None:
    strategies: dict[str, Strategy] = {
        "one at a time": one_at_a_time,
        "continuous FIFO": continuous_fifo,
        "shortest first": continuous_shortest,
        "ours": ours,
        "ours, deadlines": with_deadlines(ours),
    }
    strategies |= {f"keyed, {seconds} s": keyed_dynamic(seconds) for seconds in TIMEOUTS_SECONDS}
    strategies |= {f"padded, {seconds} s": padded_dynamic(seconds) for seconds in TIMEOUTS_SECONDS}
    longest = max(work.step_counts)
    print(f"{'load':>5} {'strategy':16} {'p95 s':>8} {'p95 slow':>9} {'in time':>8} {'p99 longest':>12}")
    for load in LOADS:
        for name, strategy in strategies.items():
            trace = served(work, strategy, load, seed)
            print(
                f"{load:5.2f} {name:16} {p95_latency(trace):8.2f} {p95_slowdown(trace):9.1f}"
                f" {in_time_share(trace):8.3f} {p99_slowdown(trace, longest):12.2f}"
            )


if __name__ == "__main__":
    main()
