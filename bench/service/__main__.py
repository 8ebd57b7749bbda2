"""The service's figures beside their bars: `make bench` prints them and writes them as JSON.

    python -m bench.service [--short] [--only NAME ...] [--out FILE]

Each part starts what it needs in a folder of its own and stops it again; its arms take turns. Run it on an
idle machine: latencies and saturation are wall-clock times.
"""

import argparse
import os
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

from bench.figures import Figure
from bench.parts import WRITTEN_WHERE, output_of, run_parts

FILE = "service.json"
PARTS = {
    "join": "bench.service.join",
    "s3": "bench.overlap",
    "peers": "bench.peers.beside",
    "planner": "bench.plan.validation",
}
"""The module of each part, which is imported when its turn comes."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="small amounts: to see that it runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some of its parts")
    parser.add_argument("--out", type=Path, help=WRITTEN_WHERE.format(file=FILE))
    asked = parser.parse_args()
    out = asked.out or output_of(FILE, asked.only, PARTS, is_small=asked.short)
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    run_parts({name: partial(measure, name, is_short=asked.short) for name in asked.only}, out)


def measure(part: str, *, is_short: bool) -> Iterator[Figure]:
    """Measure one part."""
    yield from import_module(PARTS[part]).measure(is_short=is_short)


if __name__ == "__main__":
    main()
