"""Quarantined jobs are taken up without dispatches by any free worker, and no worker holds two of them."""

import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from catalogue.states import State
from storage import dispatches, jobs
from storage.blobs import Blobs
from storage.database import Database
from storage.isolation import next_quarantined
from storage.job_views import Job, get
from storage.jobs import WorkerName
from storage.workers import declare_dead
from tasks.generate import Generate, GeneratePlan
from tasks.in_flight import InFlightJobs
from tasks.isolation import Isolations, Quarantine

from .conftest import FakeEngine, MakeJob

UNREACHABLE = "postgresql://nobody@127.0.0.1:1/none"


class Worker:
    """A worker whose engine draws what the test tells it to."""

    def __init__(self, database: Database, blobs: Blobs, tier: str, name: str) -> None:
        self.engine, self.in_flight = FakeEngine(), InFlightJobs()
        self.engine.behave = lambda _: None
        self.generate = Generate(
            db=database,
            blobs=blobs,
            submit=self.engine.submit,
            in_flight=self.in_flight,
            isolations=Isolations(database),
            worker=WorkerName(f"{name}-{tier}", name),
            tiers=[tier],
            plan=GeneratePlan(),
        )
        self.quarantine = Quarantine(
            lambda: next_quarantined(database, [tier]), self.generate, look_seconds=0.02
        )

    @property
    def held(self) -> list[str]:
        return [in_flight_job.lease.job_id for in_flight_job in self.in_flight.all()]

    @property
    def draws(self) -> bool:
        """Whether an image is not drawn yet. A job stays in flight for a moment after it was settled."""
        return any(not handle.future.done() for handle in self.engine.handles)

    def finish_one(self) -> None:
        self.engine.handles[-1].succeed()


@pytest.fixture
def workers(database: Database, blobs: Blobs, tier: str) -> Iterator[list[Worker]]:
    both = [Worker(database, blobs, tier, name) for name in ("one", "other")]
    yield both
    for worker in both:
        for handle in worker.engine.handles:
            handle.cancel()
        worker.quarantine.stop()


@pytest.fixture
def make_quarantined(database: Database, make_job: MakeJob, tier: str) -> MakeJob:
    def make(**changes: object) -> Job:
        job, name = make_job(**changes), WorkerName(secrets.token_hex(4), "dead")
        assert jobs.claim(database, job.id, tiers=[tier], worker=name, lease_seconds=30)
        declare_dead(database, boot_id=name.boot_id, on_device={job.id})
        return job

    return make


def test_S38_quarantined_jobs_are_spread_and_no_worker_holds_two(
    database: Database, workers: list[Worker], make_quarantined: MakeJob
) -> None:
    made = [make_quarantined() for _ in range(5)]
    for worker in workers:
        worker.quarantine.start()
    for num_left in range(5, 0, -1):
        wait_until(num_held, workers, min(2, num_left))
        assert max(len(worker.held) for worker in workers) == 1
        next(worker for worker in workers if worker.draws).finish_one()
        wait_until(num_queued_or_running, (database, made), num_left - 1)
    assert {len(worker.engine.handles) for worker in workers} <= {1, 2, 3, 4}


def test_S38_a_quarantined_job_waits_for_no_worker_that_has_one(
    database: Database, workers: list[Worker], make_quarantined: MakeJob
) -> None:
    """The other one takes it, long before a redispatch would be due."""
    made = [make_quarantined() for _ in range(2)]
    workers[0].quarantine.start()
    wait_for(lambda: workers[0].held == [made[0].id])
    workers[1].quarantine.start()
    wait_for(lambda: workers[1].held == [made[1].id])
    assert get(database, made[1].account_id, made[1].id).worker == "other"


def test_S38_a_message_takes_no_quarantined_job(
    database: Database, workers: list[Worker], make_quarantined: MakeJob, make_job: MakeJob
) -> None:
    quarantined, job = make_quarantined(), make_job()
    workers[0].engine.behave = lambda handle: handle.succeed()
    for one in (quarantined, job):
        workers[0].generate(one.id, takes_quarantined=False)
    states = [get(database, one.account_id, one.id).state for one in (quarantined, job)]
    assert states == [State.QUEUED, State.SUCCEEDED]


def test_S38_no_quarantined_job_is_dispatched(
    database: Database, tier: str, make_quarantined: MakeJob, make_job: MakeJob
) -> None:
    make_quarantined()
    job = make_job(redispatch_seconds=0)
    dispatches.undispatch(database, job.id)
    found = dispatches.feed(database, tier, "interactive", 10, redispatch_seconds=15)
    assert [dispatch.job_id for dispatch in found.dispatches] == [job.id]


def test_S38_interactive_quarantined_jobs_go_first_and_those_of_other_tiers_are_left_alone(
    database: Database, tier: str, make_quarantined: MakeJob
) -> None:
    bulk, interactive = make_quarantined(lane="bulk"), make_quarantined()
    assert next_quarantined(database, [tier]) == interactive.id
    assert next_quarantined(database, ["another"]) is None
    jobs.cancel(database, interactive.account_id, interactive.id)
    assert next_quarantined(database, [tier]) == bulk.id


def test_S38_quarantined_jobs_are_looked_for_again_after_the_database_was_away(
    database: Database, workers: list[Worker], make_quarantined: MakeJob, tier: str
) -> None:
    made, away = make_quarantined(), Database(UNREACHABLE, 1)
    looks: list[Callable[[], str | None]] = [lambda: next_quarantined(away, [tier])] * 2

    def look() -> str | None:
        return looks.pop()() if looks else next_quarantined(database, [tier])

    quarantine = Quarantine(look, workers[0].generate, look_seconds=0.02)
    quarantine.start()
    wait_for(lambda: workers[0].held == [made.id])
    workers[0].finish_one()
    quarantine.stop()
    assert get(database, made.account_id, made.id).state is State.SUCCEEDED


def num_held(workers: list[Worker]) -> int:
    return sum(len(worker.held) for worker in workers)


def num_queued_or_running(made: tuple[Database, list[Job]]) -> int:
    database, jobs_made = made
    return sum(get(database, job.account_id, job.id).state is not State.SUCCEEDED for job in jobs_made)


def wait_until(count: Callable[[Any], int], of: object, number: int) -> None:
    wait_for(lambda: count(of) == number)


def wait_for(holds: Callable[[], bool]) -> None:
    ticks, waited = threading.Event(), 0
    while not holds():
        waited += 1
        assert waited < 2000, "it never came"
        ticks.wait(0.01)
