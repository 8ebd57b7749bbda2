"""Runs the parts of a benchmark one after the other: it prints each figure at once and writes all as JSON.

It knows no part. A run of some parts, or of small amounts, does not replace the file of a complete one.
"""

import argparse
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.figures import Figure, table, write

FOLDER = Path("bench-output")
WRITTEN_WHERE = f"{FOLDER}/{{file}}; where not all of it is measured, {FOLDER}/part/{{file}}"
Part = Callable[[], Iterable[Figure]]


def run_command(
    description: str | None, file: str, modules: Mapping[str, str], *, that_write: Collection[str] = ()
) -> None:
    """Read the options of a benchmark whose parts are modules, and run it.

    Each module has `measure(*, is_short)`, and those of parts `that_write` take the folder of the figures as
    `folder`. A module is imported when its turn comes.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="small amounts: to see that it runs")
    parser.add_argument("--only", nargs="+", choices=modules, default=list(modules), help="some of its parts")
    parser.add_argument("--out", type=Path, help=WRITTEN_WHERE.format(file=file))
    asked = parser.parse_args()
    out = asked.out or output_of(file, asked.only, modules, is_small=asked.short)
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    options: dict[str, Any] = {"is_short": asked.short}
    run_parts(
        {
            name: partial(
                _measure, modules[name], options | ({"folder": out.parent} if name in that_write else {})
            )
            for name in asked.only
        },
        out,
    )


def _measure(module: str, options: Mapping[str, Any]) -> Iterator[Figure]:
    yield from import_module(module).measure(**options)


def output_of(file: str, chosen: Sequence[str], known: Iterable[str], *, is_small: bool) -> Path:
    """Return where a run of these parts is written."""
    is_partial = is_small or set(chosen) != set(known)
    return FOLDER / "part" / file if is_partial else FOLDER / file


def run_parts(parts: Mapping[str, Part], out: Path) -> list[Figure]:
    """Measure, print and write. An error in one figure puts all of them in doubt, so that none is caught."""
    begun_at = time.monotonic()
    figures: list[Figure] = []
    for name, measure in parts.items():
        print(f"  {_elapsed(begun_at)}: {name}", flush=True)
        for figure in measure():
            figures.append(figure)
            print(table([figure]).partition("\n")[2], flush=True)
            write(figures, out)
    print(f"  {_elapsed(begun_at)}: done")
    print(table(figures))
    return figures


def _elapsed(begun_at: float) -> str:
    """Return wall time and CPU time, which are nearly equal on a quiet machine if one process does all."""
    return f"{time.monotonic() - begun_at:5.0f} s, {time.process_time():5.0f} s of CPU"
