"""Measures the service beside its peers: `make bench-peers`.

    python -m bench.peers [--short] [--only NAME ...] [--packages FOLDER] [--out FILE]

Every peer serves the shipped model as its own documentation shows it, on the same machine, with the same
requests and threads. What is not installed or does not start is left out and named. `bench-output/peers.json`
has the figures; beside it `peers-runs.json` has every request of every run, `peers.md` the table and
`peers.png` and `peers.svg` the charts. Run it on an idle machine.
"""

import argparse
import os
from pathlib import Path

from bench.parts import WRITTEN_WHERE, output_of, run_parts
from bench.peers.beside import FILE, NAMES, PACKAGES, measure


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="small amounts: to see that it runs")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, help="some of the peers; no bar then"
    )
    parser.add_argument("--packages", type=Path, default=PACKAGES, help="a folder for each peer's packages")
    parser.add_argument("--out", type=Path, help=WRITTEN_WHERE.format(file=FILE))
    asked = parser.parse_args()
    out = asked.out or output_of(FILE, asked.only, NAMES, is_small=asked.short)
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    run_parts(
        {
            "peers": lambda: measure(
                is_short=asked.short, only=asked.only, packages=asked.packages, folder=out.parent
            )
        },
        out,
    )


if __name__ == "__main__":
    main()
