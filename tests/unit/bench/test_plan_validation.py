"""A prediction is compared with what was measured, from facts of other runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.load.outcomes import Outcome
from bench.plan.batching import compare, work_of
from bench.plan.calibration import Burst, Calibration, _lone, configured, planned
from bench.plan.fleets import Pool
from bench.plan.profiles import PlanProfile, published
from bench.plan.validation import PREDICTIONS, Compared, _trace, figures_of, write_runs
from bench.workload import mixed_requests
from catalogue.catalogue import load_catalogue
from catalogue.profile import Profile, ProfileKey, StepCost
from engine.policy.fleet import Overheads

KEY = ProfileKey("0" * 8, "float32", "a processor", 1, "2", 128, 128)
STEPS = (StepCost.of_median(2, 0.1), StepCost.of_median(4, 0.15))
PROFILE = PlanProfile.of_measured("sd", Profile(KEY, STEPS, 0.01, 0.03, 2))
PROFILES = {"sd": PROFILE, "hd": PROFILE}


def test_an_error_is_a_share_of_what_was_measured_and_the_figure_the_median_of_configurations() -> None:
    runs = {
        "a": [Compared((1.0, 4.0), (1.1, 5.0)), Compared((2.0, 4.0), (1.8, 3.0))],
        "b": [Compared((1.0, 2.0), (1.3, 2.0)), Compared((1.0, 2.0), (0.7, 2.0))],
        "c": [Compared((1.0, 2.0), (1.0, 2.2)), Compared((1.0, 2.0), (1.0, 1.8))],
    }
    p50, p50_unseen, _, p95, p95_unseen, p95_bare = figures_of(dict.fromkeys(PREDICTIONS, runs))
    assert (p50.value, p50.samples, p50.bar, p50.holds) == (0.1, (0.1, 0.3, 0.0), 0.15, True)
    assert (p95.value, p95.samples, p95.bar, p95.holds) == (0.1, (0.25, 0.0, 0.1), 0.25, True)
    assert "two runs with other arrivals differ by 0.00" in p50.reason
    assert p50_unseen.bar is p95_unseen.bar is p95_bare.bar is None
    assert (p95_bare.figure, p95_bare.value) == ("planner_error_p95_uncalibrated", p95.value)


def test_every_run_is_written_beside_its_predictions_and_drawn(tmp_path: Path) -> None:
    runs = {"a": [Compared((1.0, 4.0), (1.1, 5.0)), Compared((2.0, 4.0), (1.8, 3.0))]}
    write_runs(dict.fromkeys(PREDICTIONS, runs), tmp_path)
    document = json.loads((tmp_path / "planner-runs.json").read_text())
    second = document["runs"][1]
    assert (second["configuration"], second["run"], second["measured"]) == ("a", 1, {"p50": 2.0, "p95": 4.0})
    assert second["predicted"]["known"] == {"p50": 1.8, "p95": 3.0}
    assert second["predicted"].keys() == {"known", "unseen", "uncalibrated"}
    assert (tmp_path / "planner.svg").exists()


def test_seconds_beside_the_device_and_its_slowing_are_read_off_lone_jobs() -> None:
    pool = Pool(PROFILES, {"sd": 4, "hd": 4}, 1)
    lone: list[Any] = []
    for request in mixed_requests(5, 128, seed=1):
        on_device = 1.5 * pool.alone_seconds(planned(request))
        timings = {
            "queued_seconds": 0.02,
            "waiting_seconds": 0.01 + 0.008,  # with the encoding, as workers report it
            "encoding_seconds": 0.008,
            "denoising_seconds": on_device - 0.008,
            "decoding_seconds": 0.0,
            "file_seconds": 0.003,
            "upload_seconds": 0.004,
        }
        seconds = sum(timings.values()) - timings["encoding_seconds"]
        outcome = Outcome({}, "single", 0.0, 0.0, "succeeded", seconds + 0.05, timings=timings)
        lone.append((request, outcome))
    overheads, slowing = _lone(pool, lone)
    assert slowing == pytest.approx(1.5)
    found = (overheads.accept_seconds, overheads.claim_seconds, overheads.image_seconds)
    assert found == pytest.approx((0.02, 0.01, 0.007))
    assert overheads.answer_seconds == pytest.approx(0.05)


def test_the_device_is_slower_the_more_the_service_has_to_do() -> None:
    found = Calibration(PROFILES, Overheads(), 1.1, 1.5, 0.02)
    assert [found.slowing(load) for load in (0.0, 0.5, 1.0, 1.2)] == pytest.approx([1.1, 1.3, 1.5, 1.5])


def test_another_burst_says_how_the_pace_of_the_machine_has_changed() -> None:
    before = Calibration(PROFILES, Overheads(), 1.1, 1.5, 0.02)
    assert before.at_pace(1.5) == before
    slower = before.at_pace(1.8)
    assert (slower.full_slowing, slower.lone_slowing) == pytest.approx((1.8, 1.32))
    pool = Pool(PROFILES, {"sd": 4, "hd": 4}, 1)
    requests = mixed_requests(6, 128, seed=2)
    at_its_profile = Burst(requests, 1.0).slowing(pool, Overheads())
    assert Burst(requests, 2.0).slowing(pool, Overheads()) == pytest.approx(2 * at_its_profile)


def test_the_service_that_is_predicted_has_the_workers_and_caps_of_the_prediction(tmp_path: Path) -> None:
    catalogue = load_catalogue(configured(tmp_path, 2, {"sd": 8, "hd": 4}))
    assert [worker.device for worker in catalogue.workers] == ["cpu:0", "cpu:1"]
    assert {tier.name: tier.max_step_batch_rows for tier in catalogue.tiers} == {"sd": 8, "hd": 4}
    pool = Pool(PROFILES, {"sd": 8, "hd": 4}, 2)
    assert {worker.interactive_slots for worker in catalogue.workers} == {pool.num_slots}


def test_a_trace_has_its_rate_and_its_mix() -> None:
    trace = _trace("two sizes", 2.0, 200.0, seed=4)
    assert len(trace) / trace[-1].seconds == pytest.approx(2.0)
    assert sum(planned(one.request).tier == "hd" for one in trace) == pytest.approx(80, abs=25)
    assert {one.request.num_inference_steps for one in _trace("few steps", 2.0, 20.0, 1)} == {4, 8, 12}


def test_batches_pay_on_a_published_curve_that_has_a_knee_and_on_no_other() -> None:
    def rates(name: str) -> dict[str, float]:
        found = compare(work_of(published()[name]), num_requests=300)
        return {one.strategy: one.images_per_second for one in found}

    knee, flat = rates("h200-qwen-image-512"), rates("h200-qwen-image-1024")
    assert knee["step batches"] > 2.5 * knee["one at a time"]
    assert knee["dynamic batches"] > 2.5 * knee["one at a time"]
    assert flat["step batches"] == pytest.approx(flat["one at a time"], rel=0.01)


def test_an_image_waits_less_for_step_batches_than_for_dynamic_ones() -> None:
    served = {
        one.strategy: one.served
        for one in compare(work_of(published()["h200-qwen-image-512"]), num_requests=1000)
    }
    for ours, dynamic in zip(served["step batches"], served["dynamic batches"], strict=True):
        assert ours.p50 is not None
        assert dynamic.p50 is not None
        assert ours.p50 < dynamic.p50
    assert served["one at a time"][-1].p95 is None, "its queue grows"
