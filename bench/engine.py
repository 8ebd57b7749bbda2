"""The engine's figures beside their bars: `make bench-engine` prints them and writes them as JSON.

It chooses which strategies are compared, on how much work, and the bar and limit of each figure; other
modules measure. Everything runs in one process on one thread, the strategies in turns, and is timed in CPU
seconds, so that other load on the machine disturbs the ratios little. It also writes the curves that
`bench.plots` draws.

    python -m bench.engine [--quick] [--only NAME ...]
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from bench import adapters, curves, exactness, exchange, less_work, simulator
from bench.amounts import QUICK, WHOLE
from bench.clock import in_turns
from bench.fifo import FifoEngine
from bench.figures import Figure, Share, figure_of
from bench.latency import (
    Solo,
    best_dynamic,
    capacity_of,
    goodput,
    p95,
    p95_latency,
    serve_in_turns,
    share_missed,
    slowdowns,
    with_deadlines,
)
from bench.parts import WRITTEN_WHERE, output_of, run_parts
from bench.saturation import Saturation, saturate
from bench.shipped import SIDES, Bench, load_bench
from bench.strategies import Continuous, Ended
from bench.workload import MODEL, STEPS, mixed_requests, poisson
from engine.pipelines.steady_stack import on_steady_stack

FILE = "engine.json"
LOAD = 0.7
FAIRNESS_LOAD = 0.85
BAR, P95_BAR, SLOWDOWN_BAR, GOODPUT_BAR = Share(0.95), Share(0.85), Share(0.75), Share(0.75)
"""The limit depends on the machine, so that a bar is a share of the limit measured in the same run."""
SHARES = [0.03 * 1.06**place for place in range(63)]
"""The shares of capacity at which goodput is searched, in steps of 6 %; no strategy reaches the last."""


@on_steady_stack
def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed and little work: to see that it runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some of its parts")
    parser.add_argument("--out", type=Path, help=WRITTEN_WHERE.format(file=FILE))
    arguments = parser.parse_args()
    out = arguments.out or output_of(FILE, arguments.only, PARTS, is_small=arguments.quick)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    bench = load_bench(QUICK if arguments.quick else WHOLE, out.with_name("curves.json"))
    limits = dict(bench.loaded.row_limits[MODEL])
    print(f"determinism {bench.loaded.determinism!r}, rows {limits}, seeds {bench.seeds}")
    run_parts({name: partial(PARTS[name], bench) for name in arguments.only}, out)


def throughput(bench: Bench) -> Iterator[Figure]:
    """Saturated throughput: calotype, the bare model, keyed and padded dynamic batching, at both tiers."""
    for side in SIDES:
        bare = bench.bare(side)
        runs = [
            saturate(
                bench.ours,
                bare,
                side=side,
                max_rows=bench.max_rows(side),
                their_max_rows=bench.best_rows(side),
                seed=seed,
                num_requests=bench.amounts.saturating[side],
                segment_seconds=bench.amounts.segment_seconds,
            )
            for seed in bench.seeds
        ]
        tier = "" if side == 128 else f"_{side}"
        middle = statistics.median_low(run.engine.forward_share for run in runs)
        median = next(run.engine for run in runs if run.engine.forward_share == middle)
        reason = f"1 - beside / tick; beside is {median.beside}"
        shares = [run.engine.share_of_bare for run in runs]
        yield figure_of(f"engine_vs_bare{tier}", shares, BAR, median.forward_share, reason)
        padded = [_gain(run, "padded") for run in runs]
        limit = statistics.median(run.padded.most_gain for run in runs)
        yield figure_of(f"vs_padded{tier}", padded, BAR, limit, "the longest of its batches by their mean")
        alone = [_gain(run, "alone") for run in runs]
        limit = simulator.batching_gain(bench.work(side))
        reason = "the bare model's rows a second at our cap by those of one request alone"
        yield figure_of(f"vs_one_at_a_time{tier}", alone, BAR, limit, reason)
        keyed = [_gain(run, "keyed") for run in runs]
        yield figure_of(f"vs_keyed{tier}", keyed, BAR, 1.0, "both run full batches")
        reason = "the bare model's rows a second at our cap by those at its best row count of all"
        yield figure_of(f"cap_share{tier}", [bench.cap_share(side) for _ in bench.seeds], 0.99, 1.0, reason)


def _gain(run: Saturation, strategy: str) -> float:
    return run.engine.share_of_bare / float(getattr(run, strategy).share_of_bare)


def latency(bench: Bench) -> Iterator[Figure]:
    """Open loop at 70 % of the bare model's capacity: calotype and keyed dynamic batching."""
    for side in SIDES:
        bare, solo = bench.bare(side), bench.solo(side)
        tuning = mixed_requests(bench.amounts.tuning[side], side, seed=0)
        rate = LOAD * capacity_of(bare.prices(repeats=7), tuning)
        dynamic = best_dynamic(bench.loaded, poisson(tuning, rate, 0), bench.best_rows(side))
        gains, slowdown_gains = [], []
        for seed in bench.seeds:
            requests = mixed_requests(bench.amounts.arrivals[side], side, seed)
            rate = LOAD * capacity_of(bare.prices(repeats=7), requests)
            theirs, ours = serve_in_turns([dynamic, bench.ours], poisson(requests, rate, seed))
            gains.append(p95_latency(theirs) / p95_latency(ours))
            slowdown_gains.append(p95(slowdowns(theirs, solo)) / p95(slowdowns(ours, solo)))
        tier = "" if side == 128 else f"_{side}"
        reason = "simulated: first come, first served in our place, where no row is empty while one waits"
        limit = bench.simulated("fifo_p95_gain", side).value
        yield figure_of(f"p95_gain{tier}", gains, P95_BAR, limit, reason)
        reason = "simulated: the fewest steps left first, which lets the longest wait as long as it takes"
        limit = bench.simulated("shortest_slowdown_gain", side).value
        yield figure_of(f"slowdown_gain{tier}", slowdown_gains, SLOWDOWN_BAR, limit, reason)


def good(bench: Bench) -> Iterator[Figure]:
    """The rate at which 90 % of requests end within three times their solo time, as a share of capacity.

    Both strategies get the deadlines, as a user of the API would set them, and drop what is past them;
    dynamic batching has the time-out with the fewest misses.
    """
    side, count = 128, bench.amounts.goodput
    bare, solo = bench.bare(side), bench.solo(side)
    tuning = mixed_requests(count, side, seed=0)
    rate = 0.1 * capacity_of(bare.prices(repeats=7), tuning)
    dynamic = best_dynamic(
        bench.loaded, poisson(tuning, rate, 0), bench.best_rows(side), lambda ended: share_missed(ended, solo)
    )
    strategies = (with_deadlines(bench.ours, solo), with_deadlines(dynamic, solo))
    ours, theirs = [], []
    for seed in bench.seeds:
        capacity = capacity_of(bare.prices(repeats=7), mixed_requests(count, side, seed))
        our_share, their_share = in_turns(
            [
                goodput(strategy, solo, capacity, side=side, seed=seed, num_requests=count, shares=SHARES)
                for strategy in strategies
            ]
        )
        ours.append(our_share)
        # A class that was never served in time gets the lowest rate that was tried.
        theirs.append(max(their_share, SHARES[0]))
    gains = [our / their for our, their in zip(ours, theirs, strict=True)]
    reason = "all of the capacity by what the dynamic arm serves of it"
    yield figure_of("goodput_gain", gains, GOODPUT_BAR, 1 / statistics.median(theirs), reason)
    yield figure_of("goodput_share", ours, GOODPUT_BAR, 1.0, "all of the capacity")


def fairness(bench: Bench) -> Iterator[Figure]:
    """The longest class against first come, first served: simulated, and run on this machine."""
    side = 128
    work, count = bench.work(side), bench.amounts.simulated
    found = simulator.fairness(work, num_requests=count, seeds=bench.seeds)
    yield figure_of("fairness", found.samples, 1.1, 1.0, "first come, first served itself", is_at_most=True)
    bare, solo = bench.bare(side), bench.solo(side)
    runs = []
    for seed in bench.seeds:
        requests = mixed_requests(bench.amounts.fairness, side, seed)
        rate = FAIRNESS_LOAD * capacity_of(bare.prices(repeats=7), requests)
        strategies = [bench.ours, Continuous(bench.loaded, kind=FifoEngine)]
        runs.append(serve_in_turns(strategies, poisson(requests, rate, seed)))
    longest = [[_of_longest_class(ended, solo) for ended in run] for run in runs]
    pooled = [list(chain(*samples)) for samples in zip(*longest, strict=True)]
    yield figure_of(
        "fairness_real_p95",
        [p95(ours) / p95(fifo) for ours, fifo in longest],
        1.1,
        1.0,
        f"the value is of the {len(pooled[0])} of all seeds together",
        value=p95(pooled[0]) / p95(pooled[1]),
        is_at_most=True,
    )


def _of_longest_class(ended: Sequence[Ended], solo: Solo) -> list[float]:
    of_class = [one for one in ended if one.arrival.request.num_inference_steps == max(STEPS)]
    return slowdowns(of_class, solo)


def simulated(bench: Bench) -> Iterator[Figure]:
    """The policy's figures with this machine's step times under a simulated clock, and the curves."""
    work, count = bench.work(128), bench.amounts.simulated
    reason = "on a simulated clock"
    for name, bar, reference in (
        ("p95_gain", P95_BAR, "fifo_p95_gain"),
        ("slowdown_gain", SLOWDOWN_BAR, "shortest_slowdown_gain"),
    ):
        found, other = bench.simulated(name, 128), bench.simulated(reference, 128)
        yield figure_of(f"simulated_{name}", found.samples, bar, other.value, reason)
        yield figure_of(f"simulated_{reference}", other.samples, None, None, f"{reason}, in our place")
    gain, share = bench.simulated("goodput_gain", 128), bench.simulated("goodput_share", 128)
    yield from _simulated_goodput(gain, share, "", reason)
    # The bar is three times the bare model's time alone, which needs no padding for exact bytes.
    strictly = replace(work, is_solo_padded=False)
    gain, share = (
        simulator.FIGURES[name](strictly, seeds=bench.seeds, num_requests=count // 5)
        for name in ("goodput_gain", "goodput_share")
    )
    yield from _simulated_goodput(gain, share, "_bare_solo", "in time is by the bare solo time")
    curves.write(curves.measure(work, bench.step_tables, count // 4), bench.curves_path)


def _simulated_goodput(
    gain: simulator.Figure, share: simulator.Figure, suffix: str, reason: str
) -> Iterator[Figure]:
    theirs = [ours / by for ours, by in zip(share.samples, gain.samples, strict=True)]
    limit, name = 1 / statistics.median(theirs), f"simulated_goodput_gain{suffix}"
    yield figure_of(name, gain.samples, GOODPUT_BAR, limit, f"{reason}; all of the capacity by theirs")
    name = f"simulated_goodput_share{suffix}"
    yield figure_of(name, share.samples, GOODPUT_BAR, 1.0, f"{reason}; all of the capacity")


def exact(bench: Bench) -> Iterator[Figure]:
    """The share of images whose bytes do not depend on their batch; idle time and the cost of padding."""
    found = exactness.exact_share(bench.loaded, bench.amounts.schedules)
    yield figure_of("exact_share", found[3], 1.0, 1.0, "all of them", value=found[0])
    idle = exactness.idle_share(bench.loaded)
    yield figure_of("idle_share", idle[3], 0.01, 0.0, "it ticks while anything waits", is_at_most=True)
    for num_rows in (1, 2):
        cost = exactness.padding_cost(bench.loaded, 128 * 128, num_rows)
        reason = "its own rows; the price of exactness for a lone request"
        yield figure_of(f"padding_cost_{num_rows}", cost[3], 4.0 / num_rows, 1.0, reason, is_at_most=True)


def less(bench: Bench) -> Iterator[Figure]:
    """Guidance cutoff and step cache, with what they cost in quality on lines of their own."""
    loaded, options = less_work.shipped_model(), (less_work.CUTOFF, less_work.CACHE)
    gains = less_work.gains(loaded, options, bench.seeds)
    prices, share = bench.bare(128).prices(repeats=7), bench.cached_share(128)
    for name, option, bar, reason in (
        ("cutoff_gain", less_work.CUTOFF, BAR, "the rows that are left; texts and images stay"),
        # Not a share: the limit ignores the buckets to which full rows are padded for exact bytes.
        ("cache_gain", less_work.CACHE, 1.3, f"a cached step takes {share:.2f} of a full one; no padding"),
    ):
        limit = less_work.most_gain(option, prices, share)
        yield figure_of(name, gains[option.name][3], bar, limit, f"by the bare model's costs: {reason}")
    quality = less_work.qualities(loaded, options, bench.amounts.captions)
    cutoff_quality, cache_quality = (quality[option.name] for option in options)
    reason = "dB; of the images that the cache changes"
    yield figure_of("cache_mean_psnr", [cache_quality.mean_psnr], 28, None, reason)
    yield figure_of("cache_worst_psnr", [cache_quality.worst_psnr], 20, None, reason)
    reason = f"points of 100, of {bench.amounts.captions} images"
    yield figure_of("cache_checker_loss", [cache_quality.points_lost], 1, None, reason, is_at_most=True)
    yield figure_of("cutoff_checker_loss", [cutoff_quality.points_lost], 1, None, reason, is_at_most=True)


def exchanged(bench: Bench) -> Iterator[Figure]:
    """The exchange against diffusers' own batch, and its cost, at both tiers."""
    for side in SIDES:
        yield from exchange.figures(side, bench.amounts.exchange_rounds)


def adapted(bench: Bench) -> Iterator[Figure]:
    """Requests with different adapters in one step batch, against a step batch for each adapter."""
    yield from adapters.figures(bench.amounts.exchange_rounds)


PARTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "throughput": throughput,
    "latency": latency,
    "goodput": good,
    "fairness": fairness,
    "simulated": simulated,
    "exactness": exact,
    "less-work": less,
    "exchange": exchanged,
    "adapters": adapted,
}


if __name__ == "__main__":
    main()
