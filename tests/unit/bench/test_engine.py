"""`make bench-engine` in a short form, on a model of arithmetic: every part runs and names its figures."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.amounts import QUICK
from bench.bare import BareModel, BarePrices
from bench.engine import PARTS
from bench.figures import Figure
from bench.plots import markdown, plots
from bench.shipped import Bench
from engine.loading.load import LoadedModels
from tests.unit.engine.fakes import FakeModel

TIERS = ("", "_192")
THROUGHPUT = ("engine_vs_bare", "vs_padded", "vs_one_at_a_time", "vs_keyed", "cap_share")


SHARES = {
    "engine_vs_bare": 0.95,
    "vs_padded": 0.95,
    "vs_one_at_a_time": 0.95,
    "vs_keyed": 0.95,
    "p95_gain": 0.85,
    "slowdown_gain": 0.75,
    "goodput_gain": 0.75,
    "goodput_share": 0.75,
}


def share_of(figure: Figure) -> float | None:
    """What its bar is to be of its limit; None for one that is held to something else."""
    name = figure.figure.removeprefix("simulated_").removesuffix("_192").removesuffix("_bare_solo")
    return SHARES.get(name)


def check_bars(figures: Sequence[Figure]) -> None:
    """Bars are shares of limits of the same run."""
    found = [(share_of(one), one) for one in figures]
    assert any(share is not None for share, _ in found)
    for share, one in found:
        if share is not None:
            assert one.share == share
            assert one.limit is not None
            assert one.bar == pytest.approx(share * one.limit, abs=1e-4)


class FakeBare(BareModel):
    """Prices and steps without a model."""

    def __init__(self) -> None:
        pass

    def prices(self, *, repeats: int = 3) -> BarePrices:  # noqa: ARG002
        return BarePrices(row_seconds=2e-4, encode_seconds=1e-4, decode_seconds=1e-4)

    def step_table(self, max_rows: int, *, repeats: int = 9) -> dict[int, float]:  # noqa: ARG002
        return {rows: 0.010 + 0.005 * rows for rows in range(1, max_rows + 1)}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    loaded = LoadedModels({"tiny": FakeModel()}, {"tiny": {128 * 128: 12, 192 * 192: 8}}, "exact")
    amounts = replace(QUICK, segment_seconds=0.05, simulated=400)
    return Bench(loaded, {}, lambda _side: FakeBare(), amounts, tmp_path / "curves.json")


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (
            "throughput",
            {f"{name}{tier}" for name in THROUGHPUT for tier in TIERS},
        ),
        ("latency", {f"{name}{tier}" for name in ("p95_gain", "slowdown_gain") for tier in TIERS}),
        ("goodput", {"goodput_gain", "goodput_share"}),
        ("fairness", {"fairness", "fairness_real_p95"}),
    ],
)
def test_a_part_yields_the_figures_that_it_is_asked_for(bench: Bench, part: str, names: set[str]) -> None:
    figures = list(PARTS[part](bench))
    assert {one.figure for one in figures} == names
    assert all(one.low <= one.high and one.samples for one in figures)
    assert all(one.value > 0 for one in figures)
    if part != "fairness":
        check_bars(figures)
    padded = [one.limit for one in figures if one.figure.startswith("vs_padded")]
    assert all(limit is not None and limit > 1 for limit in padded), "rows that ended are run for nothing"


def test_the_limit_beside_the_bare_model_is_measured_in_the_same_run(bench: Bench) -> None:
    for one in PARTS["throughput"](bench):
        if one.figure.startswith("engine_vs_bare"):
            assert one.limit is not None
            assert 0 < one.limit < 1
            assert one.reason.startswith("1 - beside / tick; beside is the pipelines' own code 0.")


def test_the_simulated_part_leaves_curves_that_can_be_drawn(bench: Bench) -> None:
    found = list(PARTS["simulated"](bench))
    check_bars(found)
    figures = [one.as_json() for one in found]
    curves = json.loads(bench.curves_path.read_text(encoding="utf-8"))
    assert len(curves["step_seconds"]["128²"]) == 12
    drawn = dict(plots(figures, curves))
    assert set(drawn) == {"latency", "in-time", "step-seconds", "figures"}
    lines = list(markdown(figures))
    assert len(lines) == len(figures) + 2
    assert len({line.count("|") for line in lines}) == 1
    assert all((f"`{one['figure']}`" in line) for one, line in zip(figures, lines[2:], strict=True))
    for one, line in zip(figures, lines[2:], strict=True):
        assert ("**no**" in line, "| yes |" in line) == (one["holds"] is False, one["holds"] is True)
        assert ("of the limit" in line) == (one["share"] is not None)
    for name, svg in drawn.items():
        root = ElementTree.fromstring(svg)
        texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
        assert ("simulated_p95_gain" in texts) == (name == "figures")
        assert ("calotype" in texts) == (name in ("latency", "in-time"))
