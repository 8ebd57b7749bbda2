"""A measured figure beside its bar, as a row of a table and as JSON. It knows no benchmark."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A median with its spread, the bar that it should reach, and how far anything could get.

    `limit` is the best value that anything could have here, measured or derived, and None where no such
    number is known; `reason` says what it is, or what stands in the way. `samples` are the raw numbers, one
    a seed or run.
    """

    figure: str
    value: float
    low: float
    high: float
    bar: float
    limit: float | None
    reason: str
    samples: tuple[float, ...]
    is_at_most: bool = False

    @property
    def holds(self) -> bool:
        """Whether the value reaches its bar."""
        return self.value <= self.bar if self.is_at_most else self.value >= self.bar

    def as_json(self) -> dict[str, Any]:
        """The figure as `bench-output/engine.json` lists it."""
        return {**asdict(self), "holds": self.holds}


def figure_of(
    name: str,
    samples: Sequence[float],
    bar: float,
    limit: float | None,
    reason: str,
    *,
    value: float | None = None,
    is_at_most: bool = False,
) -> Figure:
    """The median of `samples`, or a `value` made of all of them; with their least and their greatest."""
    found = tuple(round(sample, 4) for sample in samples)
    middle = statistics.median(found) if value is None else round(value, 4)
    known = None if limit is None else round(limit, 4)
    return Figure(name, middle, min(found), max(found), bar, known, reason, found, is_at_most)


def table(figures: Iterable[Figure]) -> str:
    """A line a figure."""
    lines = [f"{'figure':24} {'value':>8} {'low':>8} {'high':>8} {'bar':>8}  holds {'limit':>8}  reason"]
    for one in figures:
        sign, holds = "<=" if one.is_at_most else ">=", "yes" if one.holds else "NO"
        limit = "-" if one.limit is None else f"{one.limit:.3f}"
        lines.append(
            f"{one.figure:24} {one.value:8.3f} {one.low:8.3f} {one.high:8.3f} {sign}{one.bar:6.2f}"
            f"  {holds:5} {limit:>8}  {one.reason}"
        )
    return "\n".join(lines)


def write(figures: Sequence[Figure], path: Path) -> None:
    """The list as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([one.as_json() for one in figures], indent=1) + "\n", encoding="utf-8")
