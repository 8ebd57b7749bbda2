"""The page on hung dependencies shows the measured figures and their bars."""

from bench.fault_figures import failures, read, table
from bench.faults import FAULTS, PARTS
from settings import ROOT

PAGE = ROOT / "docs" / "explanation" / "when-something-hangs.md"
FIGURES = PAGE.with_suffix(".json")


def test_the_table_is_that_of_the_figures() -> None:
    assert "\n".join(table(read(FIGURES))) in PAGE.read_text(encoding="utf-8")


def test_every_part_was_seen_with_every_fault() -> None:
    cells = read(FIGURES)
    assert [(cell.part, cell.fault) for cell in cells] == [
        (part, fault) for part in PARTS for fault in FAULTS
    ]
    assert sum(cell.num_lost + cell.num_doubled for cell in cells) == 0


def test_every_bar_that_was_missed_is_named() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [missed for missed in failures(read(FIGURES)) if missed not in text] == []
