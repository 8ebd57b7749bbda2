"""Aquiles-Image beside ours on a simulated device, since it loads a model only where there is a CUDA device.

Version 0.8.3 starts its pipeline after `torch.cuda.is_available()` alone, draws no image below 256 pixels,
and takes steps, guidance scale and seed from its command line rather than from a request. So its policy of
batching is compared, at the best of its settings, on the published step seconds of `bench/arrivals.py`.
`python -m bench.peers.simulated` prints it alone.
"""

import argparse
from collections.abc import Iterator

from bench.arrivals import Work
from bench.figures import Figure, figure_of, table
from bench.simulated_strategies import oldest_grouped, ours
from bench.simulator import in_time_share, p95_latency, served

LOAD = 0.5
SEEDS = (1, 2, 3)
NUM_REQUESTS, NUM_SHORT = 4000, 200
SIZES = (1, 4, 8, 16, 32)
TIMEOUTS_SECONDS = (0.0, 0.1, 0.5)
"""0.5 is its default."""


def simulated(*, is_short: bool) -> Iterator[Figure]:
    """Its p95 ÷ ours, and our share in time ÷ its own, at half the device's capacity."""
    num = NUM_SHORT if is_short else NUM_REQUESTS
    work = Work(is_solo_padded=False)
    tails: list[float] = []
    shares: list[float] = []
    told = ""
    for seed in SEEDS[:1] if is_short else SEEDS:
        mine = served(work, ours, LOAD, seed, num)
        theirs = {
            (size, timeout): served(work, oldest_grouped(timeout, max_requests=size), LOAD, seed, num)
            for size in SIZES
            for timeout in TIMEOUTS_SECONDS
        }
        size, timeout = min(theirs, key=lambda one: p95_latency(theirs[one]))
        p95 = p95_latency(theirs[size, timeout]), p95_latency(mine)
        in_time = max(in_time_share(trace) for trace in theirs.values()), in_time_share(mine)
        tails.append(p95[0] / p95[1])
        shares.append(in_time[1] / max(in_time[0], 1 / num))
        told = (
            f"p95 {p95[0]:.2f} s in batches of {size}, ours {p95[1]:.2f} s; "
            f"in time {in_time[0]:.2f}, ours {in_time[1]:.2f}"
        )
    reason = f"simulated, {LOAD:.0%} load, all requests with one seed; the last trace: {told}"
    yield figure_of("aquiles_policy_p95", tails, None, None, reason)
    yield figure_of("aquiles_policy_goodput", shares, None, None, reason)


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="small amounts: to see that it runs")
    print(table(simulated(is_short=parser.parse_args().short)))


if __name__ == "__main__":
    main()
