"""The table of trade-offs by hand-computed cases: rates, ratios to the base of the same round, the knee."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.clock import WorkClock
from bench.less_work import MAX_ROWS, SIDE, seconds_per_image
from bench.less_work import requests as requests_of_engine
from bench.load.outcomes import Outcome
from bench.load.summary import Summary, summarise
from bench.load.trace import Trace
from bench.table.arms import BASE_ARM, BASE_SETTINGS, ENGINE, FACTORS, SERVICES, arms
from bench.table.measured import (
    APART_SECONDS,
    Samples,
    at_once,
    at_rate,
    images_per_second,
    ratios,
    requests_of,
)
from bench.table.quality import QualityCurve
from bench.table.report import curve_of, effects_of, rows, spread, write
from bench.table.weights import mean_images, samples_of
from engine.loading.load import LoadedModels
from tests.unit.engine.fakes import Costly, FakeCachingModel, SetClock


def samples() -> list[Samples]:
    four, none = FACTORS["steps"][0], FACTORS["workers"][0]
    return [
        Samples(BASE_ARM, [1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [4.0, 4.0, 5.0]),
        Samples(four, [0.5, 0.8, 0.6], [40.0, 40.0, 90.0], [6.0, 6.0, 6.0]),
        Samples(none, [1.0, 1.0, 1.0], [5.0, 10.0, 15.0], [8.0, 8.0, 8.0]),
    ]


def in_waves(num_waves: int, sizes: Mapping[float, int], seconds: float) -> list[float]:
    """The ends of requests that groups of workers draw in waves; each group begins late by its key."""
    return [
        late + wave * seconds
        for late, size in sizes.items()
        for wave in range(1, num_waves + 1)
        for _ in range(size)
    ]


@pytest.mark.parametrize("num_at_once", [2, 4, 16, 32])
def test_the_rate_at_saturation_is_that_of_whole_waves(num_at_once: int) -> None:
    """Between the 11th and the 30th end of 40, waves of 16 would give 19 images for the time of 16."""
    together = in_waves(10, {0.0: num_at_once}, 3.0)
    assert images_per_second(together, num_at_once) == pytest.approx(num_at_once / 3.0)
    half = num_at_once // 2
    out_of_step = in_waves(10, {0.0: half, 1.1: half}, 3.0)
    assert images_per_second(out_of_step, num_at_once) == pytest.approx(num_at_once / 3.0)


def test_a_slow_start_and_a_last_wave_that_takes_longer_do_not_change_the_rate() -> None:
    waves = in_waves(10, {5.0: 16}, 2.0)
    assert images_per_second([*waves[:-16], *(one + 3.0 for one in waves[-16:])], 16) == pytest.approx(8.0)


def test_the_rate_is_nearly_right_where_fewer_images_run_together_than_the_cap_allows() -> None:
    """Guidance that ends half-way changes how many images fit while a wave runs."""
    for num_together in (8, 10, 12, 14, 16, 20, 24):
        ended = in_waves(160 // num_together, {0.0: num_together}, 2.0)
        assert images_per_second(ended, 16) == pytest.approx(num_together / 2.0, rel=0.07), num_together


def test_a_run_of_few_waves_counts_until_its_last_end() -> None:
    assert images_per_second([2.0], 1) == pytest.approx(0.5)
    assert images_per_second(in_waves(3, {0.0: 8}, 1.0), 8) == pytest.approx(8.0)


def test_an_image_without_guidance_takes_half_the_room_of_a_step_batch() -> None:
    by_key = {arm.key: arm.num_at_once for arm in arms()}
    assert by_key[BASE_ARM.key] == 16
    assert by_key["guidance: none"] == 32
    assert by_key["guidance: first half"] == by_key["workers: 1"] * 2 == 16
    assert by_key["batch cap: 1"] == 2


def test_an_arm_is_compared_with_the_base_of_its_own_round() -> None:
    base, four, _ = samples()
    assert ratios(four, base, lambda one: one.images_per_second) == [4.0, 2.0, 3.0]
    assert spread(ratios(four, base, lambda one: one.alone_seconds)) == pytest.approx((0.4, 0.2, 0.5))


def test_a_factor_starts_at_the_setting_of_the_base() -> None:
    steps, workers = effects_of(samples(), "images_per_second")
    assert (steps.factor, steps.settings, steps.ratios) == ("steps", ["20", "4"], [1.0, 3.0])
    assert (list(steps.lows), list(steps.highs)) == ([1.0, 2.0], [1.0, 4.0])
    assert (workers.settings, workers.ratios) == (["2", "1"], [1.0, 0.5])


def test_a_load_at_which_a_round_has_a_miss_as_its_p95_is_marked_as_missed() -> None:
    def summary(rate: float, *latencies: float | None) -> Summary:
        outcomes = [
            Outcome({"prompt": "a"}, "single", 0.0, 0.0, "succeeded" if one else "lost", one, num_images=1)
            for one in latencies
        ]
        return summarise(Trace((), 1 / rate), outcomes)

    base = Samples(BASE_ARM, curve={0.3: [summary(2.0, 0.1)], 0.6: [summary(4.0, 0.1), summary(4.0, None)]})
    curve = curve_of(base)
    assert (curve.xs, curve.ys, curve.labels) == ([2.0], [0.1], ["0.3"])
    assert curve.beyond == [(2.0, "0.6: missed")], "the median of 4 and 0 images a second"


def quality_of(steps: tuple[int, ...], percents: tuple[int, ...]) -> QualityCurve:
    """A curve of a hundred captions, of which the first ones are obeyed."""
    rows = tuple(tuple(number < percent for number in range(100)) for percent in percents)
    return QualityCurve("ddim", steps, rows)


def test_the_knee_is_the_fewest_steps_within_two_points_of_the_best() -> None:
    assert quality_of((1, 2, 4, 8, 20), (10, 60, 88, 90, 89)).knee == 4
    assert quality_of((1, 2), (50, 60)).knee == 2


def test_intervals_of_quality_are_of_paired_captions() -> None:
    curve = quality_of((1, 2, 4), (10, 88, 90))
    assert curve.obeyed == pytest.approx([10.0, 88.0, 90.0])
    assert curve.interval(2) == pytest.approx((81.0, 94.0), abs=2)
    # Two captions of a hundred differ: unpaired, the interval would be four times as wide.
    low, high = curve.below_best(2)
    assert 0.0 <= low < 2.0 < high <= 6.0
    assert curve.below_best(4) == (0.0, 0.0)


def test_arms_have_names_of_their_own_and_change_the_base_in_one_thing() -> None:
    everything = [BASE_ARM, *(arm for one in FACTORS.values() for arm in one)]
    assert len({arm.key for arm in everything}) == len(everything)
    assert BASE_SETTINGS.keys() == FACTORS.keys()
    for arm in everything[1:]:
        is_cross = arm.factor == "steps without step batches"
        assert ((arm.service is not BASE_ARM.service) != bool(arm.changes)) != is_cross, arm.key
    assert len({service.name for service in (*SERVICES, ENGINE)}) == len(SERVICES) + 1
    assert {arm.service for arm in arms()} == set(SERVICES), "weights are compared on the engine"


def test_weights_are_compared_with_each_other_and_not_with_the_service() -> None:
    plain = {"alone_seconds": [1.0], "images_per_second": [4.0], "step_batches": [8.0], "obeyed": 90.0}
    quantized = {**plain, "images_per_second": [2.0], "obeyed": 89.0}
    found = samples_of({"float32": plain, "int8": quantized})
    base = Samples(BASE_ARM, [0.1], [100.0], [1.0])
    (effect,) = effects_of([base, *found], "images_per_second")
    assert (effect.settings, effect.ratios) == (["float32", "int8"], [1.0, 0.5])
    assert [row["throughput_ratio"][0] for row in rows([base, *found])] == [1.0, 1.0, 0.5]
    assert [row["clock"] for row in rows([base, *found])] == ["wall", "CPU", "CPU"]


def test_a_step_batch_that_was_not_measured_is_an_empty_cell(tmp_path: Path) -> None:
    base, unknown, _ = samples()
    unknown.step_batches = []
    write([base, unknown], [], [], {}, tmp_path)
    assert "| 40 (40 to 90) | 3 (2 to 4) |  |  |" in (tmp_path / "table.md").read_text()
    with (tmp_path / "table.csv").open() as file:
        assert [row["step_batch"] for row in csv.DictReader(file)] == ["4.0", ""]


def test_step_batches_of_the_engine_are_counted_as_an_image_sees_them() -> None:
    assert mean_images([16, 16]) == pytest.approx(8.0)
    assert mean_images([16, 4]) == pytest.approx((8 * 8 + 2 * 2) / 10)


class SetWorkClock(SetClock, WorkClock):
    """The clock of a part that moves only when a denoiser advances it."""


def test_an_engine_at_saturation_tells_the_rows_of_its_step_batches() -> None:
    # Steps take seconds and texts none: an engine whose steps take no longer than its texts waits for these.
    clock = SetWorkClock()
    model = FakeCachingModel(denoiser=Costly(clock, lambda _num_rows: 0.8))
    loaded = LoadedModels({"tiny": model}, {"tiny": {SIDE * SIDE: MAX_ROWS}}, "exact")
    rows: list[int] = []
    measured = seconds_per_image(loaded, requests_of_engine(60, 0, {"num_inference_steps": 4}), rows.append)
    assert len(list(measured(clock))) == len(rows)
    assert set(rows) == {MAX_ROWS}
    assert mean_images(rows) == MAX_ROWS / 2


def test_requests_of_an_arm_differ_in_prompt_and_seed_and_are_the_same_in_each_arm() -> None:
    first, again = (requests_of({"num_inference_steps": steps}, 20, seed=3) for steps in (4, 20))
    assert len({one["seed"] for one in first}) == 20
    assert [one["prompt"] for one in first] == [one["prompt"] for one in again]
    trace = at_rate({"num_inference_steps": 4}, 2.0, 20.0, seed=1)
    assert trace.images_per_second == pytest.approx(2.0)
    due = [one.due_seconds for one in at_once(first).arrivals]
    assert due == pytest.approx([number * APART_SECONDS for number in range(20)])


def test_the_files_have_every_sample_and_the_medians(tmp_path: Path) -> None:
    quality = [quality_of((2, 4), (70, 90))]
    found = samples()
    found[1].obeyed = 91.5
    paths = write(found, quality, ["a note"], {"cores": 2}, tmp_path)
    document = json.loads((tmp_path / "table.json").read_text())
    assert document["arms"][1]["images_per_second"] == [40.0, 40.0, 90.0]
    assert document["quality"][0]["knee"] == 4
    text = (tmp_path / "table.md").read_text()
    assert (
        "| steps | 4 | wall | 0.6 (0.5 to 0.8) | 0.4 (0.2 to 0.5) | 40 (40 to 90) | 3 (2 to 4) | 6 | 91.5 |"
        in text
    )
    assert text.endswith("a note\n")
    assert {"plane.png", "plane.svg", "plane-factors.svg", "effects-throughput.png", "quality.svg"} <= {
        one.name for one in paths
    }
    with (tmp_path / "table.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert (cells[1]["clock"], cells[1]["step_batch_greatest"], cells[1]["obeyed"]) == ("wall", "6.0", "91.5")
    (base, *_) = rows(samples())
    assert base["throughput_ratio"] == (1.0, 1.0, 1.0)
