"""A figure holds or does not, and says so where it is read."""

import json
import math
from pathlib import Path

import pytest

from bench.figures import Share, figure_of, quantile, table, write


def test_quantiles_are_the_nearest_ranks() -> None:
    unordered = [float(number) for number in range(100, 0, -1)]
    assert [quantile(unordered, share) for share in (0.07, 0.5, 0.9, 0.95, 1.0)] == [7, 50, 90, 95, 100]
    assert [quantile([4.0, 2.0, 3.0, 1.0], share) for share in (0.25, 0.5, 0.51, 0.99)] == [1, 2, 3, 4]
    assert quantile([7.0], 0.99) == 7.0


@pytest.mark.parametrize(
    ("samples", "bar", "is_at_most", "holds"),
    [
        ((1.0, 3.0, 2.0), 2.0, False, True),
        ((1.0, 3.0, 1.9), 2.0, False, False),
        ((1.0, 3.0, 1.1), 1.1, True, True),
        ((1.0, 3.0, 1.2), 1.1, True, False),
    ],
)
def test_the_median_is_held_against_the_bar(
    samples: tuple[float, ...], bar: float, is_at_most: bool, holds: bool
) -> None:
    figure = figure_of("a", samples, bar, 1.0, "all", is_at_most=is_at_most)
    assert (figure.holds, figure.low, figure.high) == (holds, 1.0, 3.0)
    assert ("yes" if holds else "NO") in table([figure])


@pytest.mark.parametrize(("value", "holds"), [(1.71, True), (1.70, False)])
def test_a_bar_can_be_a_share_of_the_limit(value: float, holds: bool) -> None:
    figure = figure_of("a", (value,), Share(0.95), 1.8, "all")
    assert (figure.bar, figure.share, figure.holds) == (1.71, 0.95, holds)
    assert figure.reached == pytest.approx(value / 1.8)
    assert "0.95" in table([figure])


def test_a_share_of_a_limit_that_nobody_knows_is_no_bar() -> None:
    with pytest.raises(ValueError, match="a: its bar is a share of its limit"):
        figure_of("a", (1.0,), Share(0.95), None, "who knows")


def test_a_figure_without_a_bar_is_reported_and_not_judged() -> None:
    figure = figure_of("a", (1.0,), None, None, "as it is")
    assert figure.holds is None
    (line,) = table([figure]).splitlines()[1:]
    assert "yes" not in line
    assert "NO" not in line
    assert "1.000" in line


def test_the_file_lists_every_figure_with_its_samples(tmp_path: Path) -> None:
    write([figure_of("a", (1.0, 2.0, 4.0), 3, 5, "more cores")], tmp_path / "new" / "engine.json")
    (found,) = json.loads((tmp_path / "new" / "engine.json").read_text())
    assert found == {
        "figure": "a", "value": 2.0, "low": 1.0, "high": 4.0, "bar": 3, "share": None, "limit": 5,
        "reason": "more cores", "samples": [1.0, 2.0, 4.0], "is_at_most": False, "holds": False,
        "reached": 0.4,
    }  # fmt: skip


def test_a_figure_without_an_end_is_judged_and_written_as_null(tmp_path: Path) -> None:
    endless = figure_of("a", (math.inf, 3.0, math.inf), 2.0, math.inf, "they missed more than a twentieth")
    unknown = figure_of("b", (math.nan,), 2.0, 1.0, "both missed more than a twentieth")
    assert (endless.holds, unknown.holds) == (True, False)
    assert figure_of("c", (math.nan,), 2.0, None, "neither way", is_at_most=True).holds is False
    write([endless, unknown], tmp_path / "service.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    first, second = json.loads((tmp_path / "service.json").read_text(), parse_constant=refuse)
    assert (first["value"], first["low"], first["high"], first["limit"]) == (None, 3.0, None, None)
    assert first["samples"] == [None, 3.0, None]
    assert first["holds"] is True
    assert (second["value"], second["reached"], second["holds"]) == (None, None, False)
