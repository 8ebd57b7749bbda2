"""Charts are files that other programs read, and the same series give the same bytes."""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench import charts
from bench.charts import Bars, Curve, Effect, Level, Mark, Panel

XS, YS = [1.0, 2.0, 4.0], [0.5, 0.6, 20.0]
DRAWN: dict[str, Callable[[], Any]] = {
    "plane": lambda: charts.plane(
        [
            Curve("a", XS, YS, [0.4, 0.5, 18.0], [0.6, 0.7, 22.0], ["4", "8", "16"]),
            Curve("b <2>", XS, YS, beyond=[(4.5, "32: missed")]),
            Curve("never", [], [], beyond=[(0.1, "4: missed")]),
        ],
        title="Latency & throughput",
        x_name="images/s",
        y_name="seconds",
        marks=[Mark(2.0, 0.6, "knee")],
        levels=[Level(3.0, "goal")],
    ),
    "over_time": lambda: charts.over_time(
        [Panel("seconds", lines=[Curve("p95", XS, YS)], dots=[Curve("a request", XS, YS)]), Panel("empty")],
        title="Course",
    ),
    "grid": lambda: charts.grid(
        [
            Bars("images/s", {"a": 2.0, "b": 3.0}),
            Panel("seconds", [Curve("b", XS, YS), Curve("a", [], [], beyond=[(1.0, "missed")])]),
            Panel("share", [Curve("a", XS, [0.1, 0.2, 0.9])], y_max=1.05),
        ],
        title="Two systems",
        x_name="load",
    ),
    "stacked": lambda: charts.stacked(
        {"4/s": {"queued": 0.1, "denoising": 0.9}, "8/s": {"queued": 2.0}}, title="Stages", x_name="seconds"
    ),
    "effects": lambda: charts.effects(
        [Effect("steps", ["20", "4"], [1.0, 4.1], [0.9, 4.0], [1.1, 4.2])], title="Effects", x_name="times"
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_chart_is_a_readable_png_and_svg_and_the_same_series_give_the_same_bytes(
    name: str, tmp_path: Path
) -> None:
    first = charts.save(DRAWN[name](), tmp_path / "one", name)
    again = charts.save(DRAWN[name](), tmp_path / "two", name)
    png, svg = first
    with Image.open(png) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 20, "something is drawn"
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_names_of_curves_that_end_together_are_moved_apart() -> None:
    assert charts._apart([10.0, 11.0, 50.0], least=20.0) == [10.0, 30.0, 50.0]
    assert charts._apart([], least=20.0) == []


def test_a_moving_percentile_has_a_point_for_each_window() -> None:
    xs = [float(number) for number in range(100)]
    found = charts.smoothed(xs, xs, window=20.0, share=0.5)
    assert found.xs[0] == 10.0
    assert found.ys[0] == 9.0
    assert found.xs[-1] <= 90.0
    missed = charts.smoothed(xs, [math.inf if 30 <= x < 50 else x for x in xs], window=20.0, share=0.5)
    assert [math.isnan(y) for x, y in zip(missed.xs, missed.ys, strict=True) if x in (25.0, 40.0, 60.0)] == [
        *(False, True, False)
    ], "a gap where a miss has the median"
    assert charts.smoothed([], [], window=20.0, share=0.5).xs == []
    assert charts.smoothed([1.0], [1.0], window=20.0, share=0.5).xs == []


def test_colours_and_markers_are_as_many_and_all_different() -> None:
    assert len(set(charts.COLOURS)) == len(charts.COLOURS) == len(set(charts.MARKERS))
