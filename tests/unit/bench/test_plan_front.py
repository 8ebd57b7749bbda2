"""What a plan says beside its recommendation: the front of price and latency, the lanes, and large fleets."""

import pytest

from bench.plan.fleets import Fleet, Pool
from bench.plan.outcome import Tried, simulate
from bench.plan.recommendation import reasons, tried_as_json
from bench.plan.search import Plan
from tests.unit.bench.test_plan import FLAT, STEEP, found, job_class, limited, plan_of_eight, pool, request

SECONDS = ("p50_seconds", "p95_seconds", "p99_seconds")


def test_the_front_shows_what_more_money_buys_and_what_less_costs() -> None:
    plan = plan_of_eight()
    assert plan.recommended is not None
    num = plan.recommended.fleet.num_workers
    dearer = [one.p95 for one in plan.front if one.fleet.num_workers > num]
    assert len(dearer) >= 3
    assert dearer == sorted(dearer, reverse=True)
    assert dearer[0] < plan.recommended.p95
    caps = plan.recommended.fleet.max_rows
    tried = [one.fleet.num_workers for one in plan.distinct if one.fleet.max_rows == caps]
    assert {num - 1, num + 1, num + 4} <= set(tried)
    assert len(tried) == len(set(tried))


def test_a_plan_tells_what_each_lane_and_tier_waits_and_which_slots_it_gets() -> None:
    classes = (job_class(share=0.8), job_class(tier="hd", share=0.2, lane="bulk", num_inference_steps=40))
    asked = request(0.5, *classes, p95_seconds=8.0)
    fleet = Fleet((Pool({"sd": FLAT, "hd": FLAT}, {"sd": 16, "hd": 8}, 1, 1.0),))
    tried = Tried(fleet, tuple(simulate(fleet, asked.traffic, seed, num_jobs=200) for seed in (1, 2, 3)))
    document = tried_as_json(tried)
    assert document["by_tier"] == {"sd": {name: document[name] for name in SECONDS}}, "interactive jobs"
    assert tried.bulk_seconds is not None
    assert list(document["bulk"].values()) == list(tried.bulk_seconds)
    assert document["bulk"]["p50_seconds"] > document["p50_seconds"], "of 40 steps and not of 20"
    told = list(reasons(Plan(asked, tried, 5, (tried,))))
    p50, p95, _ = tried.bulk_seconds
    assert f"bulk jobs, which have no goal: p50 {p50:.3g} s, p95 {p95:.3g} s" in told
    assert "a worker of sd and hd takes up to 24 interactive and 24 bulk jobs at a time" in told
    slots = "these are the default slots of a lane: half as many again as a step batch has rows, 12 to 128"
    assert slots in told


def test_a_plan_of_interactive_jobs_tells_nothing_of_bulk_jobs() -> None:
    asked, fleet = request(0.5), Fleet((pool(FLAT),))
    tried = Tried(fleet, (simulate(fleet, asked.traffic, 1, num_jobs=200),))
    assert tried_as_json(tried)["bulk"] is None
    assert not any(reason.startswith("bulk jobs") for reason in reasons(Plan(asked, tried, 5, (tried,))))


def test_the_front_has_no_more_devices_than_there_are() -> None:
    asked = request(8.0, p95_seconds=6.0)
    few = limited(asked, 4)
    assert max(one.fleet.num_workers for one in found(few).front) <= 4


def test_a_fleet_of_the_front_is_the_one_that_saw_the_most_seeds() -> None:
    asked = request(0.5)
    fleet = Fleet((pool(FLAT),))
    outcomes = [simulate(fleet, asked.traffic, seed, num_jobs=200) for seed in (1, 2, 3)]
    several, fastest = Tried(fleet, tuple(outcomes)), min(outcomes, key=lambda one: one.p95)
    one_seed = Tried(Fleet((pool(FLAT),)), (fastest,))
    assert one_seed.p95 < several.p95
    for tried in ((one_seed, several), (several, one_seed)):
        [only] = Plan(asked, None, 0, tried).front
        assert only is several


def test_a_thousand_workers_are_simulated() -> None:
    """At 80 % of what they can do; each alone takes 2 s for an image."""
    traffic = request(400.0).traffic
    outcome = simulate(Fleet((pool(STEEP, 1000, max_rows=1),)), traffic, seed=1, num_jobs=4000)
    assert outcome.keeps_up
    assert 2.0 <= outcome.p95 < 4.0
    assert outcome.busy_share == pytest.approx(0.8, abs=0.05)
    few = simulate(Fleet((pool(STEEP, 600, max_rows=1),)), traffic, seed=1, num_jobs=4000)
    assert not few.keeps_up
