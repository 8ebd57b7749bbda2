"""Runs the parts of a benchmark one after the other: it prints each figure at once and writes all as JSON.

It knows no part. A run of some parts, or of small amounts, does not replace the file of a complete one.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from bench.figures import Figure, table, write

FOLDER = Path("bench-output")
WRITTEN_WHERE = f"{FOLDER}/{{file}}; where not all of it is measured, {FOLDER}/part/{{file}}"
Part = Callable[[], Iterable[Figure]]


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
