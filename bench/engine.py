"""The engine's figures beside their bars: `make bench-engine` prints them and writes them as JSON.

Owns which arms are compared, on how much work, and what each figure's bar and limit are; the measurements
are the other modules'. Everything runs in one process on one thread, the arms in turns, and is timed in
CPU seconds, so that a shared machine disturbs the ratios as little as it can.

    python -m bench.engine [--quick] [--only NAME ...]        # about forty minutes on an idle core
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import exactness, less_work, samplers, simulator
from bench.arrivals import StepTable, Work
from bench.bare import BareModel
from bench.figures import Figure, figure_of, table, write
from bench.latency import (
    best_dynamic,
    capacity_of,
    compare,
    goodput,
    measure_solo,
    with_deadlines,
)
from bench.saturation import Saturation, saturate
from bench.workload import MODEL, mixed_requests, poisson
from engine.load import LoadedModels, ModelSpec, load_models

FOLDER = Path(__file__).resolve().parents[1] / "models" / MODEL
OUTPUT = Path("bench-output") / "engine.json"
ROW_LIMITS = {128 * 128: 16, 192 * 192: 8}
SEEDS = (1, 2, 3)
LOAD = 0.7
OUR_SHARES = (0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)
DYNAMIC_SHARES = (0.02, 0.05, 0.08, 0.1, 0.13, 0.16, 0.2, 0.3)


@dataclass(frozen=True)
class Bench:
    """The shipped model, loaded once, and how much of everything is measured."""

    loaded: LoadedModels
    num_saturating: int
    num_arrivals: int
    num_goodput: int
    seeds: Sequence[int] = SEEDS

    def max_rows(self, side: int) -> int:
        """The cap that the self-test left to the tier of that side; every arm has it."""
        return self.loaded.row_limits[MODEL][side * side]

    def bare(self, side: int) -> BareModel:
        """The bare model at the tier's bucket sizes."""
        return BareModel(FOLDER, side, tuple(range(4, self.max_rows(side) + 1, 4)))


def main() -> None:
    """Measure, print and write; one figure's failure would be all of theirs, so nothing is caught."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed and little work: to see that it runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some of its parts")
    parser.add_argument("--out", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    spec = ModelSpec(MODEL, str(FOLDER))
    loaded = load_models([spec], device="cpu:0", row_limits={MODEL: ROW_LIMITS}, num_threads=1)
    bench = Bench(loaded, 120, 150, 100)
    if arguments.quick:
        bench = Bench(loaded, 40, 20, 12, seeds=(1,))
    print(f"promise {loaded.promise!r}, rows {dict(loaded.row_limits[MODEL])}, seeds {bench.seeds}")
    figures: list[Figure] = []
    for name in arguments.only:
        begun = time.monotonic()
        for figure in PARTS[name](bench):
            figures.append(figure)
            print(table([figure]).partition("\n")[2], flush=True)
        print(f"  {name}: {time.monotonic() - begun:.0f} s", flush=True)
        write(figures, arguments.out)
    print(table(figures))


def throughput(bench: Bench) -> Iterator[Figure]:
    """Saturated: ours beside the bare model, keyed and padded dynamic batching, at both tiers."""
    for side in (128, 192):
        bare = bench.bare(side)
        runs = [
            saturate(
                bench.loaded,
                bare,
                side=side,
                max_rows=bench.max_rows(side),
                seed=seed,
                num_requests=bench.num_saturating if side == 128 else bench.num_saturating // 2,
            )
            for seed in bench.seeds
        ]
        tier = "" if side == 128 else f"_{side}"
        yield figure_of(
            f"engine_vs_bare{tier}",
            [run.engine.share_of_bare for run in runs],
            0.97,
            "about 0.99: gather, scatter, samplers and Python between two forward passes",
        )
        yield figure_of(
            f"vs_padded{tier}", [_gain(run, "padded") for run in runs], 1.9, "2.0: longest by mean of a batch"
        )
        yield figure_of(
            f"vs_keyed{tier}", [_gain(run, "keyed") for run in runs], 1.0, "1.0: both run full batches"
        )


def _gain(run: Saturation, arm: str) -> float:
    return run.engine.share_of_bare / float(getattr(run, arm).share_of_bare)


def latency(bench: Bench) -> Iterator[Figure]:
    """Open loop at 70 % of the bare model's capacity, ours beside keyed dynamic batching at its best."""
    for side in (128, 192):
        bare, solo = bench.bare(side), measure_solo(bench.loaded, side)
        gains: dict[str, list[float]] = {"p95": [], "slowdown": []}
        count = bench.num_arrivals if side == 128 else bench.num_arrivals * 2 // 3
        tuning = mixed_requests(count // 2, side, seed=0)
        capacity = capacity_of(bare.prices(repeats=7), tuning)
        dynamic = best_dynamic(
            bench.loaded, poisson(tuning, LOAD * capacity, 0), bench.max_rows(side), by_steps=True
        )
        for seed in bench.seeds:
            requests = mixed_requests(count, side, seed)
            capacity = capacity_of(bare.prices(repeats=7), requests)
            found = compare(bench.loaded, dynamic, solo, poisson(requests, LOAD * capacity, seed))
            for name, (theirs, ours) in found.items():
                gains[name].append(theirs / ours)
        tier = "" if side == 128 else f"_{side}"
        yield figure_of(f"p95_gain{tier}", gains["p95"], 2.2, "about 2.4: a long job's own steps")
        yield figure_of(
            f"slowdown_gain{tier}", gains["slowdown"], 10, "about 14: a full step takes twice a lone one"
        )


def good(bench: Bench) -> Iterator[Figure]:
    """The rate that nine in ten get within three times their solo time, as a share of capacity."""
    side = 128
    bare, solo = bench.bare(side), measure_solo(bench.loaded, side)
    shares: dict[str, list[float]] = {"ours": [], "theirs": []}
    tuning = mixed_requests(bench.num_goodput, side, seed=0)
    capacity = capacity_of(bare.prices(repeats=7), tuning)
    dynamic = best_dynamic(
        bench.loaded, poisson(tuning, 0.1 * capacity, 0), bench.max_rows(side), by_steps=True
    )
    for seed in bench.seeds:
        capacity = capacity_of(bare.prices(repeats=7), mixed_requests(bench.num_goodput, side, seed))
        ways = (("ours", with_deadlines(bench.loaded, solo), OUR_SHARES), ("theirs", dynamic, DYNAMIC_SHARES))
        for name, serve, grid in ways:
            found = goodput(
                serve, solo, capacity, side=side, seed=seed, num_requests=bench.num_goodput, shares=grid
            )
            shares[name].append(found)
    least = DYNAMIC_SHARES[0]  # what was never served in time is given the lowest rate that was tried
    yield figure_of(
        "goodput_gain",
        [ours / max(theirs, least) for ours, theirs in zip(shares["ours"], shares["theirs"], strict=True)],
        5,
        "1 by the share of the dynamic arm",
    )
    yield figure_of("goodput_share", shares["ours"], 0.7, "1.0")


def fairness(bench: Bench) -> Iterator[Figure]:
    """In the simulator, on the step seconds of this machine: the longest class beside FIFO."""
    bare = bench.bare(128)
    rows = sorted({1, 2, 4, 8, bench.max_rows(128)})
    seconds = {num_rows: bare.step_seconds(num_rows) for num_rows in rows}
    prices = bare.prices(repeats=7)
    work = Work(
        tables={16: StepTable(seconds)},
        max_rows=bench.max_rows(128),
        image_seconds=prices.encode_seconds + prices.decode_seconds,
    )
    found = simulator.fairness(work)
    yield figure_of("fairness", found.samples, 1.1, "1.0", is_at_most=True)
    for name, measure, bar in (
        ("simulated_p95_gain", simulator.p95_gain, 2.2),
        ("simulated_goodput_share", simulator.goodput_share, 0.7),
    ):
        yield figure_of(name, measure(work).samples, bar, "as measured, on a simulated clock")


def sampling(bench: Bench) -> Iterator[Figure]:
    """One vectorised update beside diffusers' own `step()`."""
    found = samplers.sampler_gain(bench.seeds)
    yield figure_of("sampler_gain", found[3], 15, samplers.LIMIT)


def exact(bench: Bench) -> Iterator[Figure]:
    """Images equal byte for byte in any company; what the engine idles and what padding costs."""
    found = exactness.exact_share(bench.loaded)
    yield figure_of("exact_share", found[3], 1.0, "1.0")
    idle = exactness.idle_share(bench.loaded)
    yield figure_of("idle_share", idle[3], 0.01, "0: it ticks while anything waits", is_at_most=True)
    for num_rows in (1, 2):
        cost = exactness.padding_cost(bench.loaded, 128 * 128, num_rows)
        limit = "4 rows in place of its own: the price of exactness for a lone request"
        yield figure_of(f"padding_cost_{num_rows}", cost[3], 4.0 / num_rows, limit, is_at_most=True)


def less(bench: Bench) -> Iterator[Figure]:
    """Guidance cutoff and step cache, with what they cost in quality on lines of their own."""
    cutoff, cache = less_work.cutoff_gain(bench.seeds), less_work.cache_gain(bench.seeds)
    yield figure_of("cutoff_gain", cutoff[3], 1.25, "1.33: rows 2, then 1, are 1.5 of 2")
    yield figure_of("cache_gain", cache[3], 1.3, "the outer layers' share of a step")
    quality = less_work.quality_of(less_work.CACHE, num_captions=100)
    yield figure_of("cache_mean_psnr", [quality.mean_psnr], 28, "of the images that the cache changes")
    yield figure_of("cache_worst_psnr", [quality.worst_psnr], 20, "of the images that the cache changes")
    lost = quality.full_obeyed - quality.obeyed
    yield figure_of("cache_checker_loss", [lost], 1, "points of 100", is_at_most=True)


PARTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "throughput": throughput,
    "latency": latency,
    "goodput": good,
    "fairness": fairness,
    "sampling": sampling,
    "exactness": exact,
    "less-work": less,
}


if __name__ == "__main__":
    main()
