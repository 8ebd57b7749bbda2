"""The promises about bulk work on a real Postgres: fed without a sweeper, in turn, once, and never lost."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from catalogue.states import State
from storage import accounts, jobs, submissions
from storage.blobs import Blobs
from storage.database import WATCHERS, Database
from storage.job_views import get
from storage.jobs import Claim, WorkerName
from storage.workers import declare_dead
from tasks.bulk import BulkDemand
from tasks.errors import TaskNotReceived
from tasks.generate import Generate, GeneratePlan
from tasks.in_flight import InFlightJobs
from tasks.isolation import Isolations
from tests.fixtures.new_jobs import new_job

from .conftest import FakeEngine, MakeJob

NEVER = 3600.0


class Worker:
    """A worker whose engine draws what the test tells it to, and whose threads stand for Celery's."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        tier: str,
        name: str,
        num_slots: int,
        poll_seconds: float,
    ) -> None:
        self.database, self.tier, self.name = database, tier, WorkerName(f"{name}-{tier}", name)
        self.engine, self.in_flight = FakeEngine(), InFlightJobs()
        self.engine.behave = lambda _: None
        self.accepts_tasks, self.max_held = True, 0
        self.generate = Generate(
            db=database,
            blobs=blobs,
            submit=self.engine.submit,
            in_flight=self.in_flight,
            isolations=Isolations(database),
            worker=self.name,
            tiers=[tier],
            plan=GeneratePlan(),
        )
        self._threads = ThreadPoolExecutor(num_slots)
        self.start_task: Callable[[Claim], object] = self._run_soon
        self.demand = BulkDemand(
            self._claim,
            receive=self._receive,
            run_claim=self.generate.run,
            release=self.generate.release,
            num_slots=num_slots,
            poll_seconds=poll_seconds,
        )

    @property
    def held(self) -> set[str]:
        return {in_flight_job.lease.job_id for in_flight_job in self.in_flight.all()}

    def close(self) -> None:
        self.engine.behave = lambda handle: handle.cancel()
        for handle in self.engine.handles:
            handle.cancel()
        self.demand.leave()
        self._threads.shutdown()
        self.demand.stop()

    def _claim(self, num_rows: int, after_account: str) -> list[Claim]:
        return jobs.claim_next(
            self.database,
            tiers=[self.tier],
            worker=self.name,
            lease_seconds=30,
            limit=num_rows,
            after_account=after_account,
        )

    def _receive(self, claim: Claim) -> None:
        if not self.accepts_tasks:
            raise TaskNotReceived("no")
        self.max_held = max(self.max_held, self.demand.num_held)
        self.start_task(claim)

    def _run_soon(self, claim: Claim) -> None:
        self._threads.submit(self.demand.run, claim.job.id)


MakeWorker = Callable[..., Worker]


@pytest.fixture
def make_worker(worker_database: Database, blobs: Blobs, tier: str) -> Iterator[MakeWorker]:
    made: list[Worker] = []

    def make(name: str = "one", num_slots: int = 4, poll_seconds: float = NEVER) -> Worker:
        made.append(Worker(worker_database, blobs, tier, name, num_slots, poll_seconds))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


def test_bulk_jobs_start_without_a_sweeper_and_as_soon_as_the_worker_hears_of_them(
    make_worker: MakeWorker, make_job: MakeJob
) -> None:
    worker, first = make_worker(), make_job(lane="bulk")
    worker.demand.start()
    wait_for(lambda: worker.held == {first.id})
    second = make_job(lane="bulk")
    worker.demand.wake()
    wait_for(lambda: worker.held == {first.id, second.id})


def test_a_worker_holds_no_more_rows_than_slots_and_the_others_stay_queued_until_one_ends(
    make_worker: MakeWorker, make_job: MakeJob, database: Database
) -> None:
    worker, made = make_worker(num_slots=3), [make_job(lane="bulk") for _ in range(7)]
    worker.demand.start()
    for num_done in range(len(made)):
        wait_for(lambda num_done=num_done: len(worker.engine.handles) == min(7, num_done + 3))  # type: ignore[misc]
        assert worker.demand.num_held <= 3
        worker.engine.handles[num_done].succeed()
    wait_for(lambda: not worker.held)
    assert {get(database, job.account_id, job.id).state for job in made} == {State.SUCCEEDED}
    assert {get(database, job.account_id, job.id).attempt for job in made} == {1}


def test_accounts_take_turns_whatever_the_size_of_their_batches(
    make_worker: MakeWorker, database: Database, tier: str
) -> None:
    names = [accounts.create_account(database, name) for name in ("large", "small", "single")]
    sizes = dict(zip(names, (30, 8, 1), strict=True))
    for account, size in sizes.items():
        for _ in range(size):
            request = new_job(account, tier=tier, lane="bulk")
            submissions.create(database, request, redispatch_seconds=15)
    worker = make_worker(num_slots=3)
    worker.demand.start()
    for num_done in range(17):
        wait_for(lambda num_done=num_done: len(worker.engine.handles) == num_done + 3)  # type: ignore[misc]
        worker.engine.handles[num_done].succeed()
    wait_for(lambda: len(worker.engine.handles) == 20)
    drawn = Counter(handle.request.account for handle in worker.engine.handles[:18])
    assert drawn[names[2]] == 1
    assert drawn[names[1]] in (8, 7), "while both have jobs, the large one gets no more than the small one"


def test_two_workers_never_run_one_row_twice(
    make_worker: MakeWorker, make_job: MakeJob, database: Database
) -> None:
    made = [make_job(lane="bulk") for _ in range(40)]
    workers = [make_worker(name, num_slots=4) for name in ("one", "other")]
    for worker in workers:
        worker.engine.behave = lambda handle: handle.succeed()
        worker.demand.start()
    wait_for(lambda: sum(len(worker.engine.handles) for worker in workers) >= 40)
    wait_for(lambda: not any(worker.held for worker in workers))
    drawn = [handle.request.job_id for worker in workers for handle in worker.engine.handles]
    assert sorted(drawn) == sorted(job.id for job in made)
    assert {get(database, job.account_id, job.id).attempt for job in made} == {1}
    assert max(worker.max_held for worker in workers) <= 4


def test_a_drain_gives_rows_back_at_once_and_uncharged_whose_task_did_not_begin(
    make_worker: MakeWorker, make_job: MakeJob, database: Database
) -> None:
    worker, made = make_worker(num_slots=2), [make_job(lane="bulk") for _ in range(3)]
    started: list[Claim] = []
    worker.start_task = started.append  # Celery's pool stops before it begins them
    worker.demand.start()
    wait_for(lambda: len(started) == 2)
    num_releases = 0

    def watch(_driver: Any, _query: str, parameters: Any, _account_id: str | None) -> None:
        nonlocal num_releases
        num_releases += isinstance(parameters, dict) and parameters.get("transition") == "release"

    WATCHERS.append(watch)
    try:
        worker.demand.stop()
    finally:
        WATCHERS.remove(watch)
    assert num_releases == 1
    found = [get(database, job.account_id, job.id) for job in made]
    assert {job.state for job in found} == {State.QUEUED}
    assert {job.num_failures for job in found} == {0}
    other = make_worker("other", num_slots=4)
    other.demand.start()
    wait_for(lambda: other.held == {job.id for job in made})


def test_rows_of_a_worker_that_celery_refuses_are_drawn_by_another(
    make_worker: MakeWorker, make_job: MakeJob
) -> None:
    job, worker = make_job(lane="bulk"), make_worker()
    worker.accepts_tasks = False
    worker.demand.start()
    wait_for(lambda: get_attempts(worker.database, job.id) >= 1)
    worker.demand.stop()
    other = make_worker("other")
    other.demand.start()
    wait_for(lambda: other.held == {job.id})


def test_rows_of_a_worker_that_was_killed_are_drawn_by_another(
    make_worker: MakeWorker, make_job: MakeJob, worker_database: Database
) -> None:
    killed, made = make_worker("killed"), [make_job(lane="bulk") for _ in range(3)]
    killed.demand.start()
    wait_for(lambda: killed.held == {job.id for job in made})
    killed.demand.leave()  # the dead claim nothing
    declare_dead(worker_database, boot_id=killed.name.boot_id, on_device={made[0].id})
    other = make_worker("other")
    other.demand.start()
    wait_for(lambda: other.held == {made[1].id, made[2].id})  # the first one is quarantined


def test_an_interactive_job_is_never_claimed_on_demand(make_worker: MakeWorker, make_job: MakeJob) -> None:
    make_job(redispatch_seconds=0)
    worker, bulk = make_worker(), make_job(lane="bulk")
    worker.demand.start()
    wait_for(lambda: worker.held == {bulk.id})
    assert worker.demand.num_held == 1


def test_a_retry_waits_for_its_time_and_is_found_by_the_poll(
    make_worker: MakeWorker, make_job: MakeJob, database: Database
) -> None:
    job = make_job(lane="bulk")
    with database.transaction() as connection:
        statement = text(
            "UPDATE jobs SET next_dispatch_at = clock_timestamp() + interval '0.3 s' WHERE id = :id"
        )
        connection.execute(statement, {"id": job.id})
    worker = make_worker(poll_seconds=0.05)
    worker.demand.start()
    wait_for(lambda: worker.held == {job.id})


def get_attempts(database: Database, job_id: str) -> int:
    with database.transaction() as connection:
        return int(
            connection.execute(text("SELECT attempt FROM jobs WHERE id = :id"), {"id": job_id}).scalar_one()
        )


def wait_for(holds: Callable[[], bool]) -> None:
    ticks, waited = threading.Event(), 0
    while not holds():
        waited += 1
        assert waited < 3000, "it never came"
        ticks.wait(0.01)
