"""Measures the trade-offs of the service on this machine, one factor at a time, and draws them.

    python -m bench.table [--short] [--rounds 3] [--out bench-output/table]

Steps, resolution, batch cap, workers, guidance, step cache, a few-step sampler and 8-bit weights: for each
the seconds of a request alone and the images a second at saturation, as ratios to one base; for each service
latency against throughput; for the shipped model steps against quality. Rounds of all arms are interleaved.
"""

import argparse
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.parts import FOLDER
from bench.table import quality, weights
from bench.table.arms import FACTORS, arms
from bench.table.measured import SHORT, Amounts, measure
from bench.table.report import markdown, write
from engine.pipelines.steady_stack import on_steady_stack

SHORT_CAPTIONS, SHORT_STEPS = 4, (2, 4)


@on_steady_stack
def main() -> None:
    """Measure, print the table, and write it with its plots."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="small amounts, to try it")
    parser.add_argument(
        "--out", type=Path, help="default: table in bench-output, or in bench-output/part if short"
    )
    parser.add_argument(
        "--rounds", type=int, help=f"default: {Amounts.num_rounds}, or {SHORT.num_rounds} if short"
    )
    parser.add_argument("--only", action="append", metavar="FACTOR", help="this factor; may be repeated")
    arguments = parser.parse_args()
    out = arguments.out or FOLDER / ("part/table" if arguments.short or arguments.only else "table")
    chosen = arms()
    if arguments.only:
        chosen = [arm for arm in chosen if arm.factor in ("base", *arguments.only)]
        if unknown := set(arguments.only) - set(FACTORS):
            parser.error(f"--only: {', '.join(sorted(unknown))}: known are {', '.join(FACTORS)}")
    begun_at = time.monotonic()

    def say(line: str) -> None:
        print(f"  {time.monotonic() - begun_at:5.0f} s: {line}", flush=True)

    num_captions = SHORT_CAPTIONS if arguments.short else quality.NUM_CAPTIONS
    amounts = SHORT if arguments.short else Amounts()
    if arguments.rounds is not None:
        if arguments.rounds < 1:
            parser.error(f"--rounds: {arguments.rounds} is less than 1")
        amounts = replace(amounts, num_rounds=arguments.rounds)
    found = measure(chosen, amounts, say)
    missing = weights.why_not()
    if missing is None and (not arguments.only or "weights" in arguments.only):
        say("8-bit weights, on the engine alone")
        found += weights.measure(amounts.num_rounds, num_captions)
    say("steps against quality")
    curves = quality.measure(num_captions, SHORT_STEPS if arguments.short else quality.STEPS)
    obeyed = quality.of_arms(chosen, num_captions)
    for one in found:
        one.obeyed = obeyed.get(one.arm.key, one.obeyed)
    notes = ["", f"8-bit weights were not measured: {missing}."] if missing else []
    paths = write(found, curves, notes, about(arguments.short), out)
    print("\n".join(markdown(found, curves, notes)))
    say("done: " + ", ".join(str(path) for path in paths))


def about(is_short: bool) -> dict[str, Any]:
    """What was measured, when and where."""
    return {
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "is_short": is_short,
    }


if __name__ == "__main__":
    main()
