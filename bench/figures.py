"""A measured figure beside its bar, as a row of a table and as JSON. It knows no benchmark."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed (nearest rank)."""
    ordered = sorted(values)
    # 0.07 x 100 is 7.000000000000001, which is rank 7 all the same.
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


@dataclass(frozen=True)
class Share:
    """A bar that is this share of the limit measured in the same run."""

    of_limit: float


@dataclass(frozen=True)
class Figure:
    """A median with its spread, its bar, and the limit of what is possible.

    `limit` is the best possible value on this machine, measured or derived, or None if unknown; `reason` says
    what it is. `share` is `bar` ÷ `limit`, and None for a bar that does not depend on the run. A figure
    without a `bar` is reported and not judged. `samples` are the raw numbers, one a seed or run.
    """

    figure: str
    value: float
    low: float
    high: float
    bar: float | None
    share: float | None
    limit: float | None
    reason: str
    samples: tuple[float, ...]
    is_at_most: bool = False

    @property
    def holds(self) -> bool | None:
        """Whether the value reaches its bar; None without a bar."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.is_at_most else self.value >= self.bar

    @property
    def reached(self) -> float | None:
        """The value as a share of the limit; None without a limit or if it is 0."""
        return self.value / self.limit if self.limit else None

    def as_json(self) -> dict[str, Any]:
        """Return the figure as in `bench-output/engine.json`; a number without an end is null.

        JSON has neither infinity nor NaN (RFC 8259, section 6). `holds` is judged before.
        """
        numbers = {name: _finite(getattr(self, name)) for name in ("value", "low", "high", "bar", "limit")}
        reached = _finite(self.reached)
        return {
            **asdict(self),
            **numbers,
            "samples": [_finite(one) for one in self.samples],
            "holds": self.holds,
            "reached": reached and round(reached, 4),
        }


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def figure_of(
    name: str,
    samples: Sequence[float],
    bar: float | Share | None,
    limit: float | None,
    reason: str,
    *,
    value: float | None = None,
    is_at_most: bool = False,
) -> Figure:
    """Make a figure of the median of `samples`, or of a `value` computed from them, with their extremes.

    Raises `ValueError` for a bar that is a share of a limit that is not known.
    """
    found = tuple(round(sample, 4) for sample in samples)
    middle = statistics.median(found) if value is None else round(value, 4)
    known, share = None if limit is None else round(limit, 4), None
    if isinstance(bar, Share):
        if known is None:
            raise ValueError(f"{name}: its bar is a share of its limit, and it has none")
        share, bar = bar.of_limit, round(bar.of_limit * known, 4)
    return Figure(name, middle, min(found), max(found), bar, share, known, reason, found, is_at_most)


def table(figures: Iterable[Figure]) -> str:
    """Yield one line for each figure."""
    heads = f"{'value':>8} {'low':>8} {'high':>8} {'bar':>8} {'share':>5}  holds {'limit':>8} {'reached':>7}"
    lines = [f"{'figure':32} {heads}  reason"]
    for one in figures:
        sign = "<=" if one.is_at_most else ">="
        bar = "-" if one.bar is None else f"{sign}{one.bar:.3f}"
        share = "-" if one.share is None else f"{one.share:.2f}"
        holds = {True: "yes", False: "NO", None: "-"}[one.holds]
        limit = "-" if one.limit is None else f"{one.limit:.3f}"
        reached = "-" if one.reached is None else f"{one.reached:.3f}"
        lines.append(
            f"{one.figure:32} {one.value:8.3f} {one.low:8.3f} {one.high:8.3f} {bar:>8} {share:>5}"
            f"  {holds:5} {limit:>8} {reached:>7}  {one.reason}"
        )
    return "\n".join(lines)


def write(figures: Sequence[Figure], path: Path) -> None:
    """The list as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps([one.as_json() for one in figures], indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
