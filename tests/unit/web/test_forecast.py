"""Estimates are shared between requests, awaited by none of them, and cost no more than their share."""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from catalogue.catalogue import load_catalogue
from catalogue.states import State
from settings import ROOT
from storage.errors import Unavailable
from storage.workloads import Workload
from tests.fixtures.new_jobs import parameters_of
from tests.unit.web.test_eta import DEVICE, PROFILE, job, running
from web.estimates.forecast import MAX_AGE_SECONDS, MAX_AGED_SECONDS, SWITCH_SECONDS, Forecast, LaneLoad

CATALOGUE = load_catalogue(ROOT / "calotype.toml")
LONE_SECONDS = 11.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Rows:
    """What Postgres would say, how long it takes to, and what reading that takes of a processor."""

    def __init__(self, clock: Clock) -> None:
        self.workload = Workload((DEVICE,), (), (job("a"),))
        self.seconds = self.processor_seconds = 0.0
        self.spent_seconds = 0.0
        self.num_reads = 0
        self._clock = clock

    def read(self) -> Workload:
        self.num_reads += 1
        self._clock.now += self.seconds
        self.spent_seconds += self.processor_seconds
        return self.workload

    def processor_clock(self) -> float:
        return self.spent_seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rows(clock: Clock) -> Rows:
    return Rows(clock)


def at_once(work: Callable[[], None]) -> None:
    work()


@pytest.fixture
def forecast(rows: Rows, clock: Clock) -> Forecast:
    return Forecast(rows.read, CATALOGUE, clock, at_once, rows.processor_clock)


def shown(name: str, **changes: Any) -> Any:
    fields = {
        "id": name,
        "tier": "sd",
        "lane": "interactive",
        "state": State.QUEUED,
        "quarantined": False,
        "cancel_requested_at": None,
        "parameters": parameters_of(num_inference_steps=10),
    }
    return SimpleNamespace(**{**fields, **changes})


def test_requests_of_the_same_second_share_an_estimate_that_goes_on(
    forecast: Forecast, rows: Rows, clock: Clock
) -> None:
    assert forecast.of_jobs([shown("a")]) == {"a": LONE_SECONDS}
    clock.now += 0.5
    assert forecast.of_jobs([shown("a")]) == {"a": LONE_SECONDS - 0.5}
    assert rows.num_reads == 1
    clock.now += 0.6
    assert forecast.of_jobs([shown("a")]) == {"a": LONE_SECONDS}
    assert rows.num_reads == 2


def test_a_job_that_came_since_is_estimated_by_arithmetic_and_simulated_in_the_next_second(
    forecast: Forecast, rows: Rows, clock: Clock
) -> None:
    rows.workload = replace(rows.workload, queued=())
    assert forecast.accept(shown("b"))[1] == pytest.approx(LONE_SECONDS)
    clock.now += 0.5
    assert forecast.of_jobs([shown("b")]) == {"b": LONE_SECONDS - 0.5}
    assert forecast.of_jobs([shown("of another process")]) == {}
    assert rows.num_reads == 1
    rows.workload = replace(rows.workload, queued=(job("b"),))
    clock.now += 0.6
    assert forecast.of_jobs([shown("b")]) == {"b": LONE_SECONDS}


def test_a_job_that_left_the_queue_is_forgotten_with_the_snapshot_that_did_not_read_it(
    forecast: Forecast, rows: Rows, clock: Clock
) -> None:
    rows.workload = replace(rows.workload, queued=())
    forecast.accept(shown("b"))
    clock.now += 1.1
    assert forecast.of_jobs([shown("b")]) == {}


def test_a_job_of_a_paused_tier_has_no_estimate_and_those_who_submit_are_told(
    forecast: Forecast, rows: Rows, clock: Clock
) -> None:
    rows.workload = replace(rows.workload, queued=(job("a"),), pauses={"sd": "new weights"})
    assert forecast.of_jobs([shown("a")]) == {}
    assert "sd" not in forecast.of_tiers()
    load, eta = forecast.accept(shown("b"))
    assert eta is None
    assert load is not None
    assert load.pause_reason == "new weights"
    rows.workload = replace(rows.workload, pauses={})
    clock.now += 1.1
    assert forecast.of_jobs([shown("a")]) == {"a": LONE_SECONDS}


def test_jobs_that_came_since_are_ahead_of_the_next_one_in_its_lane(forecast: Forecast, rows: Rows) -> None:
    rows.workload = replace(rows.workload, queued=(job("a"),))
    found = [forecast.accept(shown(name)) for name in "bcd"]
    assert [load.num_waiting for load, _ in found if load is not None] == [1, 2, 3]
    etas = [eta for _, eta in found if eta is not None]
    assert etas == sorted(set(etas))
    assert forecast.accept(shown("e", lane="bulk"))[0] == LaneLoad(1, 8, 0, 0)


def test_a_new_job_of_more_steps_or_more_pixels_takes_longer_by_what_it_costs(
    forecast: Forecast, rows: Rows, clock: Clock
) -> None:
    rows.workload = replace(rows.workload, queued=())
    long = shown("long", parameters=parameters_of(num_inference_steps=30))
    assert forecast.accept(long)[1] == pytest.approx(LONE_SECONDS + 20)
    clock.now += 1.1
    large = shown("large", parameters=parameters_of(num_inference_steps=10, width=256, height=256))
    assert forecast.accept(large)[1] == pytest.approx(4 * (10 + 0.75) + 0.25)


def test_nothing_is_said_of_a_new_job_where_no_estimate_is_reliable(rows: Rows, clock: Clock) -> None:
    def etas(workload: Workload, *jobs: Any) -> list[float | None]:
        rows.workload = workload
        forecast = Forecast(rows.read, CATALOGUE, clock, at_once, rows.processor_clock)
        return [forecast.accept(one)[1] for one in jobs]

    idle = Workload((DEVICE,), (), ())
    strict = shown("strict", parameters=parameters_of(strict=True))
    assert etas(idle, shown("bulk", lane="bulk"), strict, shown("of another tier", tier="hd")) == [None] * 3
    assert etas(replace(idle, devices=(replace(DEVICE, profiles={}),)), shown("unmeasured")) == [None]
    assert etas(replace(idle, cut_off=frozenset({("sd", "interactive")})), shown("far back")) == [None]


def test_a_tier_without_a_live_worker_is_known_to_have_none(forecast: Forecast) -> None:
    load, _ = forecast.accept(shown("a", tier="hd"))
    assert load == LaneLoad(num_live_workers=0, num_slots=0, num_busy=0, num_waiting=None)


def test_slots_and_busy_ones_are_those_of_the_lane(rows: Rows, clock: Clock) -> None:
    rows.workload = Workload(
        (replace(DEVICE, interactive_slots=3),), (running("r"), running("s", lane="bulk")), ()
    )
    load, _ = Forecast(rows.read, CATALOGUE, clock, at_once).accept(shown("a"))
    assert load == LaneLoad(num_live_workers=1, num_slots=3, num_busy=1, num_waiting=0)


def test_a_job_that_nothing_can_be_said_of_is_not_asked_about_again_within_the_second(
    forecast: Forecast, rows: Rows
) -> None:
    rows.workload = replace(rows.workload, devices=(replace(DEVICE, profiles={}),))
    assert [forecast.of_jobs([shown("a")]) for _ in range(3)] == [{}] * 3
    assert rows.num_reads == 1


def test_estimates_take_no_more_than_their_share_of_the_time(
    forecast: Forecast, rows: Rows, clock: Clock
) -> None:
    rows.seconds = rows.processor_seconds = 0.2
    for number in range(1000):
        clock.now += 0.02
        forecast.of_jobs([shown(f"new {number}")])
    # A tenth of 20 s and what they take themselves, besides what was saved before.
    assert 10 < rows.num_reads < 16


def test_a_stall_of_postgres_is_not_held_against_the_next_estimates(
    forecast: Forecast, rows: Rows, clock: Clock
) -> None:
    rows.seconds = 9.0
    forecast.of_jobs([shown("a")])
    rows.seconds = 0.0
    clock.now += 6
    assert forecast.of_jobs([shown("a")]) == {"a": LONE_SECONDS}


def test_an_estimate_that_was_costly_is_shown_until_the_next_may_be_made(rows: Rows, clock: Clock) -> None:
    rows.workload = replace(rows.workload, queued=(job("a", num_steps=1000),))
    rows.processor_seconds = 2.0
    forecast = Forecast(rows.read, CATALOGUE, clock, at_once, rows.processor_clock)
    for seconds in range(15):  # 1.5 s more than may be spent, and a tenth of a second of that comes back each
        assert forecast.of_jobs([shown("a")]) == {"a": 1001.0 - seconds}
        assert rows.num_reads == 1
        clock.now += 1
    clock.now += 0.5
    assert forecast.of_jobs([shown("a")]) == {"a": 1001.0}


def test_an_old_estimate_is_not_shown_when_no_new_one_can_be_made(rows: Rows, clock: Clock) -> None:
    def begin(work: Callable[[], None]) -> None:
        if rows.num_reads:
            raise RuntimeError("can't start new thread")
        work()

    forecast = Forecast(rows.read, CATALOGUE, clock, begin, rows.processor_clock)
    assert forecast.of_jobs([shown("a")]) == {"a": LONE_SECONDS}
    clock.now += MAX_AGE_SECONDS
    assert forecast.of_jobs([shown("a")]) == {"a": LONE_SECONDS - MAX_AGE_SECONDS}
    clock.now += 0.1
    assert forecast.of_jobs([shown("a")]) == {}


def test_rare_requests_are_shown_the_last_estimate_while_the_next_is_being_made(
    rows: Rows, clock: Clock
) -> None:
    rows.workload = replace(rows.workload, queued=(job("a", num_steps=1000),))
    begun: list[Callable[[], None]] = []
    forecast = Forecast(rows.read, CATALOGUE, clock, begun.append, rows.processor_clock)
    assert forecast.of_jobs([shown("a")]) == {}, "the first one is being made"
    for asked in range(3):
        begun[asked]()
        clock.now += 30
        assert forecast.of_jobs([shown("a")]) == {"a": 1001.0 - 30}
    begun[3]()
    clock.now += MAX_AGED_SECONDS + 0.1
    assert forecast.of_jobs([shown("a")]) == {}, "of something that long ago nothing is said"


def test_no_answer_waits_for_a_snapshot_that_takes_long_and_the_next_one_has_it(
    rows: Rows, clock: Clock
) -> None:
    begun: list[Callable[[], None]] = []
    forecast = Forecast(rows.read, CATALOGUE, clock, begun.append)
    assert forecast.of_jobs([shown("a")]) == {}, "there is no snapshot yet, and one is being made"
    assert forecast.of_jobs([shown("a")]) == {}
    assert len(begun) == 1, "one is made at a time"
    begun[0]()
    assert forecast.of_jobs([shown("a")]) == {"a": LONE_SECONDS}
    clock.now += 2
    assert forecast.of_jobs([shown("a")]) == {"a": LONE_SECONDS - 2}, "the last one, until the next is made"
    begun[1]()
    assert forecast.of_jobs([shown("a")]) == {"a": LONE_SECONDS}
    assert (rows.num_reads, len(begun)) == (2, 2)


def test_no_request_waits_for_a_snapshot_on_another_thread(rows: Rows) -> None:
    go_on, read = threading.Event(), rows.read

    def read_slowly() -> Workload:
        assert go_on.wait(30)
        return read()

    forecast, deadline = Forecast(read_slowly, CATALOGUE), time.monotonic() + 60
    assert forecast.accept(shown("b")) == (None, None)
    assert forecast.of_jobs([shown("a")]) == forecast.of_tiers() == {}
    go_on.set()
    while not (found := forecast.of_jobs([shown("a")])):
        assert time.monotonic() < deadline
    assert 0 < found["a"] <= LONE_SECONDS


def test_a_thread_that_cannot_be_started_leaves_nothing_to_say(rows: Rows, clock: Clock) -> None:
    def refuse(_: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    forecast = Forecast(rows.read, CATALOGUE, clock, refuse)
    assert [forecast.of_jobs([shown("a")]) for _ in range(2)] == [{}, {}]


@pytest.mark.parametrize(
    "changes",
    [
        {"state": State.SUCCEEDED},
        {"state": State.FAILED},
        {"quarantined": True},
        {"cancel_requested_at": "a moment ago"},
    ],
)
def test_nothing_is_read_for_jobs_that_have_ended_or_cannot_be_estimated(
    forecast: Forecast, rows: Rows, changes: dict[str, object]
) -> None:
    assert forecast.of_jobs([shown("a", **changes)]) == {}
    assert rows.num_reads == 0


def test_rows_that_cannot_be_read_leave_nothing_to_say(clock: Clock) -> None:
    def fail() -> Workload:
        raise Unavailable("away")

    forecast = Forecast(fail, CATALOGUE, clock, at_once)
    assert forecast.of_jobs([shown("a")]) == {}
    assert forecast.of_tiers() == {}


def test_an_unexpected_error_is_logged_once_a_second_and_leaves_nothing_to_say(clock: Clock) -> None:
    def fail() -> Workload:
        clock.now += 2  # longer than a snapshot is kept
        raise ValueError("unexpected")

    forecast = Forecast(fail, CATALOGUE, clock, at_once)
    for _ in range(2):
        with capture_logs() as events:
            assert [forecast.of_jobs([shown(name)]) for name in "abc"] == [{}] * 3
        assert [(one["event"], one["log_level"]) for one in events] == [("estimate_failed", "error")]
        clock.now += 1.1


def test_an_unexpected_error_about_a_new_job_leaves_nothing_to_say(forecast: Forecast) -> None:
    with capture_logs() as events:
        broken = shown("b", parameters=SimpleNamespace(num_inference_steps="ten"))
        assert forecast.accept(broken) == (None, None)
    assert [(one["event"], one["log_level"]) for one in events] == [("estimate_failed", "error")]


def test_threads_take_short_turns_while_a_snapshot_is_made_and_only_then(clock: Clock) -> None:
    before, seen = sys.getswitchinterval(), list[float]()

    def read() -> Workload:
        seen.append(sys.getswitchinterval())
        return Workload((DEVICE,), (), ())

    Forecast(read, CATALOGUE, clock, at_once).refresh()
    assert seen == [pytest.approx(SWITCH_SECONDS)]
    assert sys.getswitchinterval() == before > SWITCH_SECONDS


def test_a_tiers_estimate_is_that_of_its_usual_job_behind_all_others(forecast: Forecast, rows: Rows) -> None:
    rows.workload = replace(rows.workload, queued=())
    usual = 20 * 1.0 + PROFILE.encode_seconds + PROFILE.decode_seconds
    assert forecast.of_tiers() == {"sd": pytest.approx(usual)}


def test_a_tier_is_slower_behind_what_runs(rows: Rows, clock: Clock) -> None:
    rows.workload = Workload((replace(DEVICE, interactive_slots=1),), (running("r"),), ())
    found = Forecast(rows.read, CATALOGUE, clock, at_once).of_tiers()
    assert found == {"sd": pytest.approx(LONE_SECONDS + 21)}


def test_a_tier_whose_queue_was_not_read_to_its_end_has_no_estimate(rows: Rows, clock: Clock) -> None:
    rows.workload = replace(rows.workload, cut_off=frozenset({("sd", "interactive")}))
    assert Forecast(rows.read, CATALOGUE, clock, at_once).of_tiers() == {}
