"""The files of a measurement are kept run by run and name units; remarks say what a reader must know."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.load.alone import Repeats
from bench.load.arrivals import constant
from bench.load.connection import Answer, Connection, Place
from bench.load.outcomes import Outcome
from bench.load.report import (
    Measurement,
    curve_of,
    excess_difference,
    keep,
    latencies_by_due,
    open_requests,
    prepare,
    remarks,
    table,
)
from bench.load.runs import Run, look
from bench.load.setup import Setup, _model_of
from bench.load.summary import Goal, summarise
from bench.load.trace import Arrival, Trace, read
from bench.load.utilisation import Use

GOAL = Goal(seconds=1.0)
REQUEST = {"prompt": "a red star", "width": 64, "height": 64, "num_inference_steps": 4, "num_images": 1}


def outcome(due: float, latency: float = 0.5, **changes: Any) -> Outcome:
    found = Outcome(REQUEST, "single", due, due, "succeeded", ended_seconds=due + latency, num_images=1)
    return replace(found, **changes)


def run_of(*outcomes: Outcome, seconds: float = 10.0, use: Use | None = None) -> Run:
    arrivals = tuple(Arrival(one.due_seconds, (one.request,)) for one in outcomes)
    trace = Trace(arrivals, seconds)
    summary = summarise(trace, outcomes, GOAL)
    return Run(trace.images_per_second, trace, outcomes, summary, use or Use())


def measured(*runs: Run, **further: Any) -> Measurement:
    return Measurement("ours", {"service": {"determinism": "exact"}}, GOAL, list(runs), further=further)


def test_a_folder_that_cannot_be_written_is_noticed_before_anything_is_measured(tmp_path: Path) -> None:
    prepare(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == [], "the try leaves nothing behind"
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        prepare(tmp_path / "file" / "folder")


def test_each_run_is_kept_when_it_ends(tmp_path: Path) -> None:
    found = measured()
    for number, rate in enumerate((2, 4), 1):
        found.runs.append(run_of(*(outcome(index / rate) for index in range(10 * rate))))
        keep(found, tmp_path)
        assert [one["offered"] for one in json.loads((tmp_path / "result.json").read_text())["runs"]] == [
            2.0,
            4.0,
        ][:number]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"result.json", "summary.csv"} | {
        f"{kind}" for number in (1, 2) for kind in (f"requests-{number}.csv", f"trace-{number}.jsonl")
    }
    assert read(tmp_path / "trace-2.jsonl").images_per_second == pytest.approx(4.0)
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["p95_seconds"] for row in rows] == ["0.5", "0.5"]
    assert {"mean_seconds", "p50_seconds", "p99_seconds"} <= rows[0].keys()
    assert [float(row["in goal/s"]) for row in rows] == [2.0, 4.0]
    assert (rows[0]["queued_share"], rows[0]["currency"]) == ("", ""), "no job has said either"


def test_stages_goodput_currency_and_the_busy_engine_are_in_the_summary(tmp_path: Path) -> None:
    timings = {"queued_seconds": 0.1, "denoising_seconds": 0.4}
    priced = [outcome(second, timings=timings, cost=(0.5, "EUR")) for second in (1.0, 2.0)]
    use = Use(seconds=10.0, num_workers=2, counters={"calotype_step_seconds_sum": 5.0})
    found = measured(run_of(*priced, use=use))
    keep(found, tmp_path)
    with (tmp_path / "summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["currency"], float(row["in goal/s"]), float(row["engine"])) == ("EUR", 0.2, 0.25)
    shares = {name: float(value) for name, value in row.items() if name.endswith("_share")}
    assert shares["queued_share"] == pytest.approx(0.2)
    assert sum(shares.values()) == pytest.approx(1.0)
    titles, (shown,) = table(found)
    printed = dict(zip(titles, shown, strict=True))
    assert [printed[title] for title in ("in goal/s", "engine", "currency")] == ["0.20", "25.0%", "EUR"]


def test_a_result_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    found = measured(run_of(outcome(1.0)))
    keep(found, tmp_path)
    before = (tmp_path / "result.json").read_text()
    found.runs.append(run_of(outcome(1.0), outcome(2.0)))
    found.further["search"] = {"a text that no file can have": "\ud800"}
    with pytest.raises(UnicodeEncodeError):
        keep(found, tmp_path)
    assert (tmp_path / "result.json").read_text() == before
    assert not list(tmp_path.glob("*.part"))


def test_remarks_say_what_a_reader_must_know_before_the_figures_are_used() -> None:
    fine = run_of(outcome(1.0), outcome(2.0))
    assert remarks(measured(fine)) == []
    late = run_of(outcome(1.0, sent_seconds=1.2), outcome(2.0, kind="unsent", sent_seconds=2.0))
    (lag, missed) = remarks(measured(late))
    assert lag.startswith("0.2 images/s: the load generator was late (200 ms late at p99, 1 not sent)")
    assert missed == "0.2 images/s: misses: 1 unsent ()"
    by_clock = run_of(outcome(1.0, is_waited=False), outcome(2.0), use=Use(unread=["http://worker/metrics"]))
    (clock, unread) = remarks(measured(by_clock))
    assert "when 50% of the requests ended was taken from the service's clock" in clock
    assert unread.endswith("no metrics from http://worker/metrics")
    counters = {
        f"calotype_step_batches:{reason}": number for reason, number in (("cap", 1.0), ("alone", 3.0))
    }
    (why,) = remarks(measured(run_of(outcome(1.0), outcome(2.0), use=Use(counters=counters))))
    assert why == "0.2 images/s: why step batches were not fuller: alone 75%, cap 25%"
    unread_gpu = Use(unread_gpus={1: "Not Supported"})
    (gpu,) = remarks(measured(*(run_of(outcome(1.0), outcome(2.0), use=unread_gpu) for _ in range(2))))
    assert gpu.startswith("GPU 1 of the load generator's machine could not be read"), "once for all runs"
    assert gpu.endswith("Not Supported")
    details = [outcome(1.0, kind="failed", detail=one) for one in "fedcbaa"]
    (said,) = remarks(measured(run_of(outcome(1.0), *details)))
    assert said.endswith("misses: 7 failed (a, b, c, d, e)"), "each once, five at most"


def test_a_miss_is_late_in_every_plot() -> None:
    run = run_of(outcome(1.0), outcome(3.0, kind="refused", ended_seconds=3.0), outcome(2.0, 4.0))
    assert latencies_by_due(run.outcomes) == ([1.0, 2.0, 3.0], [0.5, 4.0, math.inf])
    xs, ys = open_requests(run.outcomes)
    assert (xs[-1], ys) == (6.0, [1, 0, 1, 0, 1, 0]), "a refused request is not open for ever"
    document = measured(run, run_of(outcome(1.0), seconds=5.0)).as_json()
    curve = curve_of(document, "p95")
    assert (curve.xs, curve.ys, curve.labels) == ([0.2], [0.5], ["0.2"])
    assert curve.beyond == [(0.2, "0.3: missed")]


@pytest.mark.parametrize(
    ("level", "num_images", "num_equal", "largest", "said"),
    [
        ("exact", 3, 3, 0, None),
        ("exact", 3, 2, 1, "1 of 3 images drawn again, alone, have other bytes, by up to 1 of 255"),
        ("exact within a bucket", 3, 2, 1, None),
        ("within 1/255", 3, 0, 2, "differs by 2 of 255"),
        ("not repeatable", 3, 0, 90, None),
        (None, 3, 0, 2, "differs by 2 of 255"),
        ("within 1/255", 0, 0, 0, "no image was drawn again"),
    ],
)
def test_images_drawn_again_are_held_to_the_level_of_the_service(
    level: str | None, num_images: int, num_equal: int, largest: int, said: str | None
) -> None:
    repeats = Repeats(num_images, num_equal, largest)
    further = {"repeats": {**vars(repeats), "is_within_one": repeats.is_within_one}}
    excess = excess_difference(
        Measurement("ours", {"service": {"determinism": level}}, GOAL, further=further)
    )
    assert (excess is None) if said is None else said in (excess or "")
    assert excess_difference(measured()) is None, "nothing was drawn again"


class Described(Connection):
    """A service with these tiers."""

    def __init__(self, *tiers: dict[str, Any]) -> None:
        super().__init__(Place("http://127.0.0.1:9"), None)
        model = {
            "name": "m",
            "default": True,
            "default_num_inference_steps": 10,
            "default_guidance_scale": 2.0,
        }
        usual = {"model": "m", "default_width": 64, "default_height": 64, "can_serve": True}
        self._answers = {
            "/v1/models": {"models": [model]},
            "/v1/tiers": {"tiers": [{**usual, **one} for one in tiers]},
        }

    def ask(self, method: str, path: str, *_: Any, **__: Any) -> Answer:  # noqa: ARG002 - as its base
        return Answer(200, {}, json.dumps(self._answers[path]).encode())


def test_a_replayed_trace_is_of_the_model_that_its_requests_name() -> None:
    drawn = Setup(GOAL, {}, constant, "constant", 10.0, 0.0, 10.0, seed=1)
    assert _model_of(replace(drawn, model="asked for")) == "asked for"
    for model, request in (("its own", {**REQUEST, "model": "its own"}), (None, REQUEST)):
        assert _model_of(replace(drawn, replayed=Trace((Arrival(0.0, (request,)),), 10.0))) == model


def test_a_service_is_held_to_the_weakest_level_of_its_tiers() -> None:
    exact, within = (
        {"num_live_workers": number, "determinism": level}
        for number, level in ((2, "exact"), (3, "within 1/255"))
    )
    gone = {"num_live_workers": 0, "determinism": None, "can_serve": False}
    assert look(Described(exact)).determinism == "exact"
    found = look(Described(gone, exact, within))
    assert (found.determinism, found.num_workers) == ("within 1/255", 3)
