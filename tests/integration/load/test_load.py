"""The load generator against a service over real HTTP: its schedule, its misses, its checks, its search."""

from pathlib import Path
from typing import Any

import pytest

from bench.load.arrivals import constant
from bench.load.connection import Place
from bench.load.jobs import ran_seconds
from bench.load.mix import Mix, only
from bench.load.report import conclusions
from bench.load.runs import Bench, Load, ServiceError
from bench.load.setup import Search, Setup, measure
from bench.load.summary import Goal
from bench.load.trace import read, write

from .fake_service import FakeService, Faults, served

MIX = Mix(only((128, 128)), only(10), only(2.0))
QUICK = Goal(seconds=0.25)


def load(seconds: float = 2.0, *, warm_up: float = 0.0, seed: int = 1) -> Load:
    return Load(MIX, constant, "constant", seconds, warm_up, seed)


def bench(service: FakeService, *, drain: float = 20.0, goal: Goal = QUICK) -> Bench:
    return Bench(Place(service.url, "calo_key"), goal, 1, drain)


def setup(**changes: Any) -> Setup:
    usual: dict[str, Any] = {
        "goal": QUICK,
        "shares": {},
        "pattern": constant,
        "pattern_name": "constant",
        "seconds": 1.0,
        "warm_up_seconds": 0.0,
        "drain_seconds": 20.0,
        "seed": 1,
    }
    return Setup(**{**usual, **changes})


def test_a_stall_shows_in_the_latency_of_all_requests_that_were_due_in_it() -> None:
    """A load generator that waited for answers before it sent more would see one slow request."""
    stall_seconds = 1.0
    service = FakeService(stall=lambda number: stall_seconds if number == 5 else 0.0)
    with served(service):
        run = bench(service).run(load(2.0).at(20.0))
    assert run.summary.error_rate == 0
    assert run.summary.latency.p99 >= stall_seconds
    late = [one for one in run.outcomes if (one.latency_seconds or 0) > QUICK.seconds]  # type: ignore[operator]
    assert len(late) >= 0.6 * stall_seconds * 20, "those that were due in the first three quarters of it"
    assert run.summary.in_goal_share is not None
    assert run.summary.in_goal_share <= 1 - len(late) / 40


def test_requests_are_sent_when_they_are_due_though_none_has_been_answered() -> None:
    num = 60
    service = FakeService(faults=Faults(never_ends=lambda _: True))
    with served(service):
        run = bench(service, drain=0.2).run(load(1.0).at(float(num)))
    assert run.summary.by_kind == {"unfinished": num}
    assert len(service.bodies) == num
    assert len(set(service.canceled)) == num, "nothing is left behind for the next run"
    assert run.summary.images_per_second == 0


@pytest.mark.parametrize(
    ("faults", "kind", "detail"),
    [
        (Faults(refuses=lambda number: number % 4 == 0), "refused", "busy"),
        (Faults(drops=lambda number: number % 4 == 0), "lost", "RemoteDisconnected"),
        (Faults(fails=lambda number: number % 4 == 0), "failed", "generation_failed"),
        (Faults(spoils=lambda number: number % 4 == 0), "wrong", "image: another hash"),
    ],
)
def test_what_goes_wrong_is_a_miss_by_its_kind(faults: Faults, kind: str, detail: str) -> None:
    with served(FakeService(faults=faults)) as service:
        run = bench(service).run(load(1.0).at(20.0))
    assert run.summary.by_kind == {"succeeded": 15, kind: 5}
    assert run.summary.error_rate == pytest.approx(0.25)
    assert run.summary.in_goal_share is not None
    assert run.summary.in_goal_share <= 0.75
    assert {one.detail for one in run.outcomes if one.kind == kind} == {detail}
    assert run.summary.as_json()["latency"]["p99"] is None


def test_a_service_that_lets_few_requests_wait_is_measured_by_its_own_clock() -> None:
    service = FakeService(draw_seconds=0.02, max_waiters=2)
    with served(service):
        run = bench(service).run(load(1.0).at(80.0))
    assert run.summary.by_kind == {"succeeded": 80}
    assert run.summary.unwaited_share > 0.3
    by_clock = [one for one in run.outcomes if not one.is_waited]
    for one in by_clock:
        assert one.ended_seconds is not None
        ran = ran_seconds(service.jobs[one.job_id])
        assert one.ended_seconds - one.sent_seconds >= 0.999 * ran, "not before the service says"
    assert max(ran_seconds(job) for job in service.jobs.values()) > 0.3, "they drew one after the other"


def test_one_file_gives_the_same_requests(tmp_path: Path) -> None:
    trace = load(1.0).at(20.0)
    write(trace, tmp_path / "trace.jsonl")
    bodies = []
    for one in (trace, read(tmp_path / "trace.jsonl")):
        with served(FakeService()) as service:
            bench(service).run(one)
        bodies.append(sorted(service.bodies, key=lambda body: body["seed"]))
    assert bodies[0] == bodies[1]
    assert len(bodies[0]) == 20


def test_a_measurement_has_times_alone_runs_and_repeated_images() -> None:
    nums_kept: list[int] = []
    with served(FakeService(draw_seconds=0.01)) as service:
        found = measure(
            setup(goal=Goal(times=20.0), rates=[10.0, 20.0], num_repeats=3),
            Place(service.url, "calo_key"),
            keep=lambda kept: nums_kept.append(len(kept.runs)),
        )
    assert nums_kept == [1, 2], "a run is kept before the next one starts"
    (seconds,) = found.goal.alone.values()
    assert seconds >= 0.01
    assert [run.summary.num_requests for run in found.runs] == [10, 20]
    assert found.further["repeats"]["num_images"] == found.further["repeats"]["num_equal"] == 3
    document = found.as_json()
    assert document["service"]["model"] == "fake"
    assert document["runs"][0]["goal"] == "within 20 times alone"
    (said,) = conclusions(found)
    assert said.startswith("repeats: 3 of 3 images drawn again alone have equal bytes;")


def test_without_a_rate_the_load_is_a_share_of_what_the_workers_do_one_by_one() -> None:
    with served(FakeService(draw_seconds=0.1)) as service:
        found = measure(setup(), Place(service.url, "calo_key"))
    assert 0 < found.runs[0].rate <= 7.0, "0.7 of at most 10 images/s"


def test_a_search_says_what_it_found() -> None:
    """Ten images a second: of 32 that are due in a second, the last waits for more than two."""
    with served(FakeService(draw_seconds=0.1)) as service:
        found = measure(
            setup(goal=Goal(seconds=1.0), rates=[8.0], search=Search(target=0.9, max_runs=3)),
            Place(service.url, "calo_key"),
        )
    assert len(found.runs) == 3
    assert found.knee in found.runs
    search = found.further["search"]
    assert search["offered_at_knee"] in (8.0, 16.0), "16 leave a backlog of 0.6 s"
    assert search["lowest_failed"] in (16.0, 32.0)
    (said,) = conclusions(found)
    assert said.startswith(
        f"knee: {search['offered_at_knee']:.3g} images/s, the highest offered rate with 90%"
    )
    assert f"{search['lowest_failed']:.3g} images/s had less" in said


def test_a_service_that_cannot_be_measured_says_why() -> None:
    with served(FakeService()) as service:
        place = Place(service.url, "calo_key")
        with pytest.raises(ServiceError, match="there is no model 'other'; there is: fake"):
            measure(setup(model="other"), place)
    with pytest.raises(ServiceError, match="/v1/models is not answered"):
        measure(setup(), place)
    with (
        served(FakeService(faults=Faults(fails=lambda _: True))) as broken,
        pytest.raises(ServiceError, match=r"alone .* is failed: generation_failed"),
    ):
        measure(setup(), Place(broken.url, "calo_key"))
