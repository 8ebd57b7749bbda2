"""Evaluates the cells of `bench.faults`: the longest answer of each kind, the bars, and the table.

It measures nothing: it turns cells into lines and JSON.

    python -m bench.fault_figures bench-output/faults.json      (prints what the page shows)
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.fault_load import Answer

KINDS = ("healthz", "readyz", "submission", "status")
MAX_HEALTHZ_SECONDS, MAX_READYZ_SECONDS = 1.0, 2.0
MAX_SUBMISSION_SECONDS, MAX_REFUSAL_SECONDS = 1.0, 8.0
MAX_SECONDS_UNTIL_WELL = 15.0


@dataclass(frozen=True)
class Longest:
    """The longest answer among requests of one kind."""

    seconds: float
    num_requests: int
    num_unanswered: int


@dataclass(frozen=True)
class Cell:
    """One part and one of its faults."""

    part: str
    fault: str
    fault_seconds: float
    longest: dict[str, Longest]
    num_accepted_meanwhile: int
    num_refused: dict[str, int]
    """Submissions that were refused, by status."""
    num_refused_without_retry_after: int
    num_accepted: int
    """The jobs accepted during the fault, and in total after the others were sent again."""
    num_lost: int
    num_doubled: int
    well_seconds: float | None


def cell_of(
    part: str,
    fault: str,
    fault_seconds: float,
    answers: Sequence[Answer],
    *,
    num_accepted: int,
    num_lost: int,
    num_doubled: int,
    well_seconds: float | None,
) -> Cell:
    """Compute the figures from those answers."""
    submissions = [answer for answer in answers if answer.kind == "submission"]
    refused = [answer for answer in submissions if answer.status is not None and answer.job_id is None]
    statuses = sorted({answer.status for answer in refused if answer.status is not None})
    return Cell(
        part=part,
        fault=fault,
        fault_seconds=fault_seconds,
        longest={kind: _longest([answer for answer in answers if answer.kind == kind]) for kind in KINDS},
        num_accepted_meanwhile=sum(answer.job_id is not None for answer in submissions),
        num_refused={str(status): sum(answer.status == status for answer in refused) for status in statuses},
        num_refused_without_retry_after=sum(not answer.says_when for answer in refused),
        num_accepted=num_accepted,
        num_lost=num_lost,
        num_doubled=num_doubled,
        well_seconds=well_seconds,
    )


def _longest(answers: Sequence[Answer]) -> Longest:
    seconds = max((answer.seconds for answer in answers), default=0.0)
    return Longest(seconds, len(answers), sum(answer.status is None for answer in answers))


def failures(cells: Iterable[Cell]) -> list[str]:
    """Return a sentence for every bar that is missed."""
    return [f"{cell.part} {cell.fault}: {what}" for cell in cells for what in _failures(cell)]


def _failures(cell: Cell) -> Iterator[str]:
    needs = cell.part == "postgres"  # without it nothing can be accepted
    bars = {
        "healthz": MAX_HEALTHZ_SECONDS,
        "readyz": MAX_READYZ_SECONDS,
        "submission": MAX_REFUSAL_SECONDS if needs else MAX_SUBMISSION_SECONDS,
        "status": MAX_REFUSAL_SECONDS,
    }
    for kind, bar in bars.items():
        longest = cell.longest[kind]
        if longest.seconds > bar or longest.num_unanswered:
            yield f"{kind} took {longest.seconds:.1f} s, bar {bar:g} s, unanswered {longest.num_unanswered}"
    if cell.num_refused and not needs:
        yield f"submissions were refused: {cell.num_refused}"
    if cell.num_refused_without_retry_after:
        yield f"{cell.num_refused_without_retry_after} refusals without Retry-After"
    if cell.num_lost or cell.num_doubled:
        yield f"{cell.num_lost} lost, {cell.num_doubled} doubled"
    if cell.well_seconds is None or cell.well_seconds > MAX_SECONDS_UNTIL_WELL:
        yield f"well after {_seconds(cell.well_seconds)}, bar {MAX_SECONDS_UNTIL_WELL:g} s"


def report(cells: Sequence[Cell]) -> Iterator[str]:
    """The table, and every bar that is missed."""
    yield from table(cells)
    missed = failures(cells)
    yield ""
    yield "Missed in this run:\n" if missed else "No bar was missed."
    yield from (f"- {what}" for what in missed)


def table(cells: Iterable[Cell]) -> Iterator[str]:
    """Markdown: a line a cell. Seconds stand with the number of requests behind them."""
    yield (
        "| fails | how | longest `/healthz` | longest `/readyz` | longest submission | longest status read "
        "| accepted meanwhile, refused | lost of all | well after |"
    )
    yield "|" + "---|" * 9
    for cell in cells:
        yield line(cell)


def line(cell: Cell) -> str:
    """A cell as a line of the table."""
    longest = [
        f"{one.seconds:.2f} s of {one.num_requests}"
        + (f", {one.num_unanswered} unanswered" if one.num_unanswered else "")
        for one in (cell.longest[kind] for kind in KINDS)
    ]
    refused = ", ".join(f"{count} x {status}" for status, count in cell.num_refused.items()) or "none"
    doubled = f", {cell.num_doubled} doubled" if cell.num_doubled else ""
    parts = [
        cell.part,
        cell.fault,
        *longest,
        f"{cell.num_accepted_meanwhile}, {refused}",
        f"{cell.num_lost} of {cell.num_accepted}{doubled}",
        _seconds(cell.well_seconds),
    ]
    return f"| {' | '.join(parts)} |"


def _seconds(seconds: float | None) -> str:
    return "not within 120 s" if seconds is None else f"{seconds:.1f} s"


def write(cells: Sequence[Cell], path: Path) -> None:
    """The cells as JSON, with the machine's load when they were written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "load_average": os.getloadavg()[0]}
    document = {"machine": machine, "cells": [asdict(cell) for cell in cells]}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def read(path: Path) -> list[Cell]:
    """The cells that `write` wrote."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return [
        Cell(**{**cell, "longest": {kind: Longest(**one) for kind, one in cell["longest"].items()}})
        for cell in document["cells"]
    ]


if __name__ == "__main__":
    print("\n".join(report(read(Path(sys.argv[1])))))
