"""A simulated fleet runs each job once, on the worker that a real one would give it to."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.policy.candidate import BatchKey
from engine.policy.fleet import Overheads, SimulatedFleet, SimulatedWorker, WorkerKind
from engine.policy.free_workers import PAUSE_SECONDS, fewest_jobs
from engine.policy.policy import Policy
from engine.policy.simulation import SimulatedDevice, SimulatedGeneration

ENCODE, DECODE = 0.25, 0.75


@dataclass(frozen=True)
class Job:
    """A job of square images."""

    tier: str = "sd"
    lane: str = "interactive"
    is_strict: bool = False
    num_images: int = 1
    num_steps: int = 10
    side: int = 16
    account: str = ""


class Costs:
    """Four rows take a second a step, eight take one and a half."""

    def step_seconds(self, key: BatchKey, num_rows: int) -> float:
        return (1.0 if num_rows <= 4 else 1.5 * num_rows / 8) * key.latent_height / 16

    def cached_share(self, _: BatchKey) -> float:
        return 1.0

    def encode_seconds(self, _: BatchKey) -> float:
        return ENCODE

    def decode_seconds(self, _: BatchKey) -> float:
        return DECODE


def generations_of(job: Job, at: float) -> Sequence[SimulatedGeneration]:
    return [
        SimulatedGeneration(
            BatchKey(job.tier, job.side, job.side),
            job.num_steps,
            lane=job.lane,
            account=job.account,
            submitted_at=at,
        )
        for _ in range(job.num_images)
    ]


def device() -> SimulatedDevice:
    return SimulatedDevice(Policy(lambda _: 8, step_seconds=Costs().step_seconds), Costs())


def worker(
    name: str = "", tiers: str = "sd", slots: int = 1, *, takes_strict: bool = True
) -> SimulatedWorker[Job]:
    kind = WorkerKind(frozenset(tiers.split()), slots, slots, takes_strict)
    return SimulatedWorker(kind, device(), generations_of, name)


ALONE = ENCODE + 10 * 1.0 + DECODE


def mixed_load(seed: int, num_jobs: int) -> list[tuple[float, Job]]:
    rng, now, load = random.Random(seed), 0.0, []
    for _ in range(num_jobs):
        now += rng.choice([0.0, rng.expovariate(0.3)])
        job = Job(
            lane=rng.choice(["interactive", "interactive", "bulk"]),
            num_images=rng.choice([1, 1, 2]),
            num_steps=rng.choice([4, 12, 20]),
            side=rng.choice([16, 24]),
            account=rng.choice("ab"),
        )
        load.append((now, job))
    return load


@pytest.mark.parametrize("seed", range(4))
def test_a_fleet_of_one_worker_with_enough_slots_is_one_device(seed: int) -> None:
    load, alone = mixed_load(seed, 40), device()
    images = [generations_of(job, at) for at, job in load]
    for (at, _), of_job in zip(load, images, strict=True):
        for one in of_job:
            alone.submit(one, at)
    while alone.advance():
        pass
    only = worker(slots=1000)
    fleet = SimulatedFleet([only])
    runs = [fleet.submit(job, at) for at, job in load]
    assert len(list(fleet.run())) == len(load)
    assert [run.drawn_at for run in runs] == [max(one.ended_at for one in of_job) for of_job in images]
    assert [run.begun_at for run in runs] == [min(one.begun_at for one in of_job) for of_job in images]
    assert only.device.busy_seconds == pytest.approx(alone.busy_seconds)
    assert only.device.num_row_steps == alone.num_row_steps


@given(
    seed=st.integers(0, 2**32),
    slots=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    drained_at=st.floats(0, 100),
    added_at=st.floats(0, 100),
)
@settings(max_examples=30, deadline=None)
def test_every_job_ends_once_whatever_workers_come_and_go(
    seed: int, slots: list[int], drained_at: float, added_at: float
) -> None:
    load = mixed_load(seed, 30)
    workers = [worker(str(number), slots=num) for number, num in enumerate(slots)]
    fleet = SimulatedFleet(workers, Overheads(0.1, 0.1, 0.1, 0.1, 0.1))
    runs = [fleet.submit(job, at) for at, job in load]
    fleet.add(worker("late"), added_at)
    ended = list(fleet.run_until(drained_at))
    fleet.drain(workers[0])
    ended += fleet.run()
    assert sorted(run.number for run in ended) == sorted(run.number for run in runs)
    assert all(run.arrived_at < run.taken_at < run.begun_at < run.drawn_at < run.ended_at for run in runs)
    assert fleet.num_waiting == 0
    assert all(not one.num_jobs and not one.runs for one in (*workers, *fleet.workers))
    taken_late = [run for run in runs if run.worker is workers[0] and run.taken_at > drained_at]
    assert taken_late == []
    assert workers[0].stopped_at < math.inf


def takers(fleet: SimulatedFleet[Job], num_jobs: int) -> list[str]:
    runs = [fleet.submit(Job(), 0.0) for _ in range(num_jobs)]
    list(fleet.run())
    return [run.worker.name for run in runs if run.worker]


def with_held(seed: int, **held: int) -> SimulatedFleet[Job]:
    """Workers by name, which hold so many jobs."""
    workers = [worker(name, slots=700) for name in held]
    fleet = SimulatedFleet(workers, seed=seed)
    for one in workers:
        for _ in range(held[one.name]):
            fleet.hold(Job(), one, generations_of(Job(), 0.0))
    return fleet


def test_a_job_goes_to_a_worker_that_holds_none() -> None:
    assert {takers(with_held(seed, full=3, idle=0), 1)[0] for seed in range(50)} == {"idle"}


def test_of_busy_workers_it_is_mostly_the_one_with_fewer_jobs() -> None:
    found = [takers(with_held(seed, few=1, many=4), 1)[0] for seed in range(400)]
    assert found.count("few") == pytest.approx(350, abs=30)
    assert found == [takers(with_held(seed, few=1, many=4), 1)[0] for seed in range(400)]


@pytest.mark.parametrize("has_others", [True, False])
def test_a_job_that_no_idle_worker_takes_waits_for_a_poll_unless_there_is_one_worker(
    has_others: bool,
) -> None:
    taken_at = []

    def noted(job: Job, at: float) -> Sequence[SimulatedGeneration]:
        taken_at.append(at)
        return generations_of(job, at)

    busy = SimulatedWorker(WorkerKind(frozenset({"sd"}), 9, 9), device(), noted)
    other = worker(slots=1)
    fleet = SimulatedFleet([busy, other] if has_others else [busy], Overheads(waits_for_polls=True))
    for one in (busy, other)[: 1 + has_others]:
        fleet.hold(Job(), one, generations_of(Job(), 0.0))
    fleet.submit(Job(), 0.0)
    list(fleet.run())
    assert 0 < taken_at[0] <= PAUSE_SECONDS if has_others else taken_at == [0.0]


def test_workers_of_every_kind_get_their_share_of_what_both_take() -> None:
    workers = [worker("both", "sd hd", slots=600), *(worker("sd", slots=600) for _ in range(3))]
    assert takers(SimulatedFleet(workers), 400).count("both") == pytest.approx(100, abs=40)


def test_jobs_can_be_given_to_the_worker_with_the_fewest() -> None:
    fleet = SimulatedFleet([worker("a", slots=4), worker("b", slots=4)], choose=fewest_jobs)
    arrivals = {0.0: 50, 1.0: 50, 2.0: 50, 3.0: 4, 30.0: 50}
    runs = [fleet.submit(Job(num_steps=num_steps), at) for at, num_steps in arrivals.items()]
    list(fleet.run())
    first, second, third, fourth, fifth = (run.worker for run in runs)
    assert first is not second
    assert third is not fourth
    assert fifth is fourth, "its short job has ended"


def test_a_slot_that_gets_free_takes_the_first_job_of_the_tier_whose_turn_it_is() -> None:
    fleet = SimulatedFleet([worker(tiers="sd hd")])
    runs = [fleet.submit(Job(tier), 0.0) for tier in ("sd", "sd", "sd", "hd", "hd")]
    list(fleet.run())
    assert [run.ended_at / ALONE for run in runs] == pytest.approx([1, 3, 5, 2, 4])


def test_each_worker_has_turns_of_its_own() -> None:
    small, large = worker("small", "sd"), worker("large", "sd hd")
    fleet = SimulatedFleet([small, large])
    runs = [fleet.submit(Job(tier), 0.0) for tier in ("hd", "sd", "hd", "sd", "sd", "sd")]
    list(fleet.run())
    names = [run.worker.name for run in runs if run.worker]
    assert names == ["large", "small", "large", "large", "small", "small"]
    assert runs[2].ended_at == pytest.approx(3 * ALONE)


def test_a_bulk_slot_takes_the_first_job_of_all_tiers() -> None:
    fleet = SimulatedFleet([worker(tiers="sd hd")])
    runs = [fleet.submit(Job(tier, "bulk"), 0.0) for tier in ("sd", "sd", "sd", "hd")]
    list(fleet.run())
    assert [run.ended_at / ALONE for run in runs] == pytest.approx([1, 2, 3, 4])


def test_slots_of_one_lane_are_not_taken_by_the_other() -> None:
    fleet = SimulatedFleet([worker()])
    bulk = [fleet.submit(Job(lane="bulk"), 0.0) for _ in range(3)]
    interactive = fleet.submit(Job(), 1.0)
    list(fleet.run())
    assert interactive.taken_at == 1.0
    assert bulk[1].taken_at == bulk[0].ended_at


def test_a_strict_job_waits_for_a_worker_that_takes_it_and_blocks_no_other() -> None:
    fleet = SimulatedFleet([worker("refuses", takes_strict=False)])
    strict, other = fleet.submit(Job(is_strict=True), 0.0), fleet.submit(Job(), 0.0)
    assert list(fleet.run()) == [other]
    assert fleet.num_waiting == 1
    fleet.add(worker("takes"), 100.0)
    assert list(fleet.run()) == [strict]
    assert strict.taken_at == 100.0


def test_seconds_beside_the_device_are_added_and_keep_the_slot_as_long_as_the_worker_has_the_job() -> None:
    fleet = SimulatedFleet([worker()], Overheads(0.1, 0.2, 0.3, 0.4, 0.5))
    first, second = (fleet.submit(Job(num_images=2), 0.0) for _ in range(2))
    list(fleet.run())
    drawn_at = 0.1 + 0.2 + 2 * ENCODE + 10 + 2 * DECODE
    assert first.drawn_at == pytest.approx(drawn_at)
    assert first.ended_at == pytest.approx(drawn_at + 2 * 0.3 + 0.4 + 0.5)
    assert second.taken_at == pytest.approx(drawn_at + 2 * 0.3 + 0.4)


def test_a_worker_takes_what_waits_when_it_has_started() -> None:
    fleet = SimulatedFleet[Job]()
    run = fleet.submit(Job(), 1.0)
    fleet.add(worker(), 60.0)
    list(fleet.run())
    assert run.taken_at == 60.0
    assert run.ended_at == pytest.approx(60 + ALONE)


def test_a_device_is_busy_for_what_has_passed_of_the_steps_that_it_runs() -> None:
    only = worker()
    fleet = SimulatedFleet([only])
    fleet.submit(Job(), 5.0)
    for at, busy_seconds in ((5.0, 0.0), (7.75, 2.75), (12.0, 7.0), (16.0, ALONE), (30.0, ALONE)):
        list(fleet.run_until(at))
        assert only.device.busy_seconds_until(at) == pytest.approx(busy_seconds)


def test_steps_are_left_until_each_has_ended_whatever_else_was_chosen_with_it() -> None:
    only = worker(slots=2)
    fleet = SimulatedFleet([only])
    fleet.submit(Job(), 0.0)
    list(fleet.run_until(0.0))
    [one] = only.runs
    for at, num_left in ((0.0, 10), (1.0, 10), (1.25, 9), (4.75, 6), (10.0, 1), (10.25, 0), (10.5, 0)):
        list(fleet.run_until(at))
        assert only.device.num_steps_left_at(one, at) == num_left
    fleet.submit(Job(), 20.0)
    fleet.submit(Job(), 23.5)
    list(fleet.run_until(25.6))
    assert [only.device.num_steps_left_at(one, 25.6) for one in only.runs] == [5, 9]


def test_a_drained_worker_ends_its_jobs_takes_no_other_and_stops() -> None:
    leaving, staying = worker("leaving", slots=2), worker("staying", slots=1)
    fleet = SimulatedFleet([leaving, staying])
    runs = [fleet.submit(Job(), 0.0) for _ in range(4)]
    list(fleet.run_until(5.0))
    fleet.drain(leaving)
    assert leaving in fleet.workers
    list(fleet.run())
    assert [run.worker.name for run in runs if run.worker].count("leaving") == 2
    assert leaving.stopped_at == max(run.ended_at for run in runs if run.worker is leaving)
    assert fleet.workers == [staying]


def test_an_idle_worker_stops_as_soon_as_it_is_drained() -> None:
    idle = worker()
    fleet = SimulatedFleet([idle], now=7.0)
    fleet.drain(idle)
    assert (fleet.workers, idle.stopped_at) == ([], 7.0)
    fleet.submit(Job(), 8.0)
    assert list(fleet.run()) == []
    assert fleet.num_waiting == 1
