"""docs/explanation/when-a-worker-dies.md has the table that `make bench-kills` prints, and its bars hold."""

import re

from bench.kill_figures import MAX_REAP_TO_CLAIM_SECONDS, kills_of, table
from settings import ROOT

PAGE = ROOT / "docs" / "explanation" / "when-a-worker-dies.md"


def rows(lines: list[str]) -> dict[str, list[str]]:
    """The other columns of a table, keyed by its first."""
    cells = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    return {name.strip(): [value.strip() for value in values] for name, *values in cells[2:]}


def test_S38_the_page_has_the_figures_of_the_command_and_their_bars_hold() -> None:
    shown = rows(PAGE.read_text(encoding="utf-8").splitlines())
    assert list(shown) == list(rows(list(table(kills_of([], [], num_kills=0, start_to_claim_seconds=[])))))
    assert all(int(value) >= 100 for value in shown["jobs"])
    assert {value for name in ("lost", "doubled", "differing") for value in shown[name]} == {"0"}
    for value in shown["reap to claim, p50 / p90 / p99"]:
        p99 = re.findall(r"([\d.]+) s", value)[-1]
        assert float(p99) <= MAX_REAP_TO_CLAIM_SECONDS
