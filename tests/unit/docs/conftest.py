"""Fixtures that read the pages: every page, and the tables under a heading."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from settings import ROOT

Rows = list[list[str]]
ReadTable = Callable[[str, str], Rows]


@pytest.fixture(scope="session")
def read_table() -> ReadTable:
    """The cells of the tables of a page between one heading and the next of the same or a higher level."""
    return _rows


@pytest.fixture(scope="session")
def pages() -> list[Path]:
    """Every Markdown page of the repository."""
    return [*sorted(ROOT.glob("*.md")), ROOT / "client" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _rows(page: str, heading: str) -> Rows:
    rows: Rows = []
    for line in _section((ROOT / page).read_text(encoding="utf-8"), heading).splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        else:
            rows.append([])
    # A table is its lines without the heading and the rule under it.
    return [
        row
        for index, row in enumerate(rows)
        if row
        and not set(row[0]) <= set("-: ")
        and not (index + 1 < len(rows) and rows[index + 1] and set(rows[index + 1][0]) <= set("-: "))
    ]


def _section(text: str, heading: str) -> str:
    level = len(heading) - len(heading.lstrip("#"))
    start = text.index(f"\n{heading}\n") + len(heading) + 2
    end = re.compile(rf"^#{{1,{level}}} ", re.MULTILINE).search(text, start)
    return text[start : end.start() if end else len(text)]
