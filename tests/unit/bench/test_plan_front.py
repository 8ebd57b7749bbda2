"""What a plan says beside its recommendation: the front of price and latency, the lanes, and large fleets."""

from bench.plan.fleets import Fleet
from bench.plan.outcome import Tried, simulate
from bench.plan.search import Plan
from tests.unit.bench.test_plan import FLAT, found, limited, pool, request


def test_the_front_shows_what_more_money_buys_and_what_less_costs() -> None:
    plan = found(request(8.0, p95_seconds=6.0))
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
