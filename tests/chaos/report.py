"""The report of a run: a row for each fault, as Markdown and as JSON, written anew after each row.

It knows counts and seconds alone.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.figures import quantile
from tests.chaos.checker import Findings

FOLDER = Path("chaos-output")
NUM_REASONS = 20
LEAST_KEPT = 0.9
"""The bar of the median of `Row.kept_shares`."""


@dataclass(frozen=True)
class Row:
    """One fault: how often it was inflicted, and what was counted afterwards.

    `recovery_seconds` are from each fault to the instant when what it stopped went on, `kept_shares` the
    throughput after faults ÷ that before the same fault.
    """

    fault: str
    seed: int
    inflicted: int
    wanted: int
    findings: Findings
    recovery_seconds: Sequence[float] = ()
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    kept_shares: Sequence[float] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing was found, work went on as fast, and the fault was inflicted as often as wanted."""
        is_fast_again = not self.kept_shares or median(self.kept_shares) >= LEAST_KEPT
        return self.findings.holds and is_fast_again and self.inflicted >= self.wanted

    def as_json(self) -> dict[str, Any]:
        """The row as `report.json` has it."""
        counts = asdict(self.findings)
        reasons = counts.pop("reasons")
        return {
            "fault": self.fault,
            "seed": self.seed,
            "inflicted": self.inflicted,
            "wanted": self.wanted,
            **counts,
            "recovery_p50_seconds": self._quantile(0.5),
            "recovery_p99_seconds": self._quantile(0.99),
            "throughput_kept": round(median(self.kept_shares), 2) if self.kept_shares else None,
            "holds": self.holds,
            "details": self.details,
            "seconds": round(self.seconds, 1),
            "reasons": list(reasons[:NUM_REASONS]),
        }

    def _quantile(self, share: float) -> float | None:
        return round(quantile(self.recovery_seconds, share), 2) if self.recovery_seconds else None


def merged(blocks: Sequence[Row], wanted: int) -> Row:
    """The blocks of a row as one row."""
    counts: Counter[str] = Counter()
    for block in blocks:
        counts.update({name: value for name, value in vars(block.findings).items() if name != "reasons"})
    reasons = tuple(reason for block in blocks for reason in block.findings.reasons)
    return Row(
        blocks[0].fault,
        blocks[0].seed,
        sum(block.inflicted for block in blocks),
        wanted,
        Findings(**counts, reasons=reasons),
        [seconds for block in blocks for seconds in block.recovery_seconds],
        {"blocks": len(blocks), **blocks[-1].details},
        sum(block.seconds for block in blocks),
        [share for block in blocks for share in block.kept_shares],
    )


def broken(fault: str, seed: int, wanted: int, error: Exception) -> Row:
    """The row of a block that ended by an error, which does not hold."""
    reasons = (f"{type(error).__name__}: {error}",)
    return Row(fault, seed, 0, wanted, Findings(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, reasons))


def stored(block: Row) -> dict[str, Any]:
    """A block as `restored` reads it."""
    return {**vars(block), "findings": vars(block.findings)}


def restored(document: dict[str, Any]) -> Row:
    """The block that `stored` gave."""
    found = {**document["findings"], "reasons": tuple(document["findings"]["reasons"])}
    return Row(**{**document, "findings": Findings(**found)})


COLUMNS = (
    *("fault", "inflicted", "attempts", "acknowledged", "lost", "duplicated", "unexpected", "recovered"),
    *("misattributed", "leaked", "stuck", "orphans", "images"),
    *("recovery_p50_seconds", "recovery_p99_seconds", "throughput_kept", "holds"),
)


def write(rows: Sequence[Row], about: dict[str, Any], folder: Path = FOLDER) -> None:
    """Write `report.json` and `report.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {**about, "rows": [row.as_json() for row in rows]}
    _replace(folder / "report.json", json.dumps(document, indent=1, allow_nan=False) + "\n")
    _replace(folder / "report.md", "\n".join(markdown(rows)) + "\n")


def markdown(rows: Sequence[Row]) -> list[str]:
    """The table."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for row in rows:
        cells = row.as_json()
        lines.append(f"| {' | '.join(_cell(cells[name]) for name in COLUMNS)} |")
    return lines


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return "" if value is None else str(value)


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_suffix(path.suffix + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
