"""A worker around a real engine whose model obeys the test: cancellation, a lost device, a hung step."""

import threading
import time
from collections.abc import Iterator

import pytest

from catalogue.states import State
from engine.engine import Engine
from storage import jobs
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import Unavailable
from storage.job_views import get
from storage.jobs import WorkerName
from storage.workers import Worker
from tasks.generate import Generate, GeneratePlan
from tasks.heartbeat import EXIT_HUNG, Heartbeat
from tasks.in_flight import InFlightJobs
from tasks.isolation import Isolations
from tasks.process_end import EXIT_DEVICE_LOST, end_when_fatal
from tests.integration.tasks.conftest import MakeJob
from tests.unit.engine.fakes import FakeModel, SetClock

STEPS = 200


class SteppedModel(FakeModel):
    """Waits in every forward pass until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.may_pass = threading.Semaphore(0), threading.Semaphore(0)
        self.on_predict = self._wait

    def _wait(self) -> None:
        self.entered.release()
        assert self.may_pass.acquire(timeout=60)


@pytest.fixture
def model() -> SteppedModel:
    return SteppedModel()


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def real_engine(model: SteppedModel, clock: SetClock) -> Iterator[Engine]:
    engine = Engine({"tiny": model}, {"tiny": {64 * 64: 8}}, determinism="exact", clock=clock)
    engine.start()
    yield engine
    for _ in range(STEPS):
        model.may_pass.release()
    engine.stop()


@pytest.fixture
def worker(tier: str) -> Worker:
    return Worker(f"w-{tier}", f"b-{tier}", "host", 1, "cpu:0", (tier,), 4, 1, "exact")


@pytest.fixture
def task(
    worker_database: Database,
    blobs: Blobs,
    real_engine: Engine,
    in_flight: InFlightJobs,
    worker: Worker,
    tier: str,
) -> Generate:
    return Generate(
        db=worker_database,
        blobs=blobs,
        submit=real_engine.submit,
        in_flight=in_flight,
        isolations=Isolations(worker_database),
        worker=WorkerName(worker.boot_id, worker.id),
        tiers=(tier,),
        plan=GeneratePlan(),
    )


@pytest.fixture
def ended() -> list[int]:
    """The codes with which the process would have ended."""
    return []


@pytest.fixture
def heartbeat(
    worker_database: Database,
    worker: Worker,
    in_flight: InFlightJobs,
    real_engine: Engine,
    clock: SetClock,
    ended: list[int],
) -> Heartbeat:
    return Heartbeat(
        worker_database,
        worker,
        in_flight,
        real_engine,
        heartbeat_seconds=5,
        lease_seconds=30,
        watchdog_seconds=60,
        end_process=ended.append,
        clock=clock,
    )


def test_cancellation_takes_effect_within_one_step_of_the_heartbeat_that_brings_it(
    database: Database, task: Generate, model: SteppedModel, heartbeat: Heartbeat, make_job: MakeJob
) -> None:
    job = make_job(width=64, height=64, num_inference_steps=STEPS)
    thread = threading.Thread(target=task, args=(job.id,))
    thread.start()
    assert model.entered.acquire(timeout=60)
    jobs.cancel(database, job.account_id, job.id)
    model.may_pass.release()
    assert model.entered.acquire(timeout=60), "the worker does not know yet, and goes on"
    heartbeat.beat()
    num_steps = len(model.step_sizes)
    for _ in range(STEPS):
        model.may_pass.release()
    thread.join(60)
    assert get(database, job.account_id, job.id).state is State.CANCELED
    assert len(model.step_sizes) == num_steps + 1, "the step that was under way, and no other"


def test_lost_device_gives_its_leases_up_before_the_process_ends(
    database: Database,
    worker_database: Database,
    task: Generate,
    model: SteppedModel,
    real_engine: Engine,
    worker: Worker,
    ended: list[int],
    make_job: MakeJob,
) -> None:
    job = make_job(width=64, height=64, prompt="lose the device")
    task_thread = threading.Thread(target=task, args=(job.id,))
    fatal = threading.Thread(target=end_when_fatal, args=(real_engine, worker_database, worker, ended.append))
    task_thread.start()
    fatal.start()
    assert model.entered.acquire(timeout=60)
    model.may_pass.release()
    fatal.join(60)
    task_thread.join(60)
    assert ended == [EXIT_DEVICE_LOST]
    jobs.reap(database)
    after = get(database, job.account_id, job.id)
    assert (after.state, after.quarantined, after.num_failures) == (State.QUEUED, True, 0)


def test_every_lease_has_been_given_up_by_the_time_a_process_without_its_device_ends(
    database: Database,
    worker_database: Database,
    task: Generate,
    model: SteppedModel,
    real_engine: Engine,
    worker: Worker,
    in_flight: InFlightJobs,
    make_job: MakeJob,
) -> None:
    """Batch members and waiting jobs are all claimable elsewhere at once, quarantined and not charged."""
    size = {"width": 64, "height": 64}
    made = [make_job(prompt=prompt, **size) for prompt in ("lose the device", "a red heart", "a blue star")]
    left: list[tuple[State, bool, int]] = []

    def end_process(code: int) -> None:
        assert code == EXIT_DEVICE_LOST
        jobs.reap(database)
        found = [get(database, job.account_id, job.id) for job in made]
        left.extend((job.state, job.quarantined, job.num_failures) for job in found)

    threads = [threading.Thread(target=task, args=(job.id,)) for job in made]
    threads.append(
        threading.Thread(target=end_when_fatal, args=(real_engine, worker_database, worker, end_process))
    )
    for thread in threads:
        thread.start()
    assert model.entered.acquire(timeout=60)
    deadline = time.monotonic() + 60
    while real_engine.num_generations < len(made):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for _ in range(STEPS):
        model.may_pass.release()
    for thread in threads:
        thread.join(60)
    assert left == [(State.QUEUED, True, 0)] * len(made)
    assert not in_flight.all()


def test_S38_only_the_jobs_that_a_device_was_lost_on_are_quarantined(
    database: Database,
    worker_database: Database,
    real_engine: Engine,
    worker: Worker,
    ended: list[int],
    make_job: MakeJob,
) -> None:
    lost, waiting = (make_job(width=64, height=64, prompt=prompt) for prompt in ("lose the device", "a star"))
    for job in (lost, waiting):
        name = WorkerName(worker.boot_id, worker.id)
        assert jobs.claim(database, job.id, tiers=worker.tiers, worker=name, lease_seconds=30)
    real_engine.fatal.set()
    end_when_fatal(real_engine, worker_database, worker, ended.append, on_device=lambda: [lost.id])
    assert ended == [EXIT_DEVICE_LOST]
    found = [get(database, job.account_id, job.id) for job in (lost, waiting)]
    assert [(job.state, job.quarantined) for job in found] == [(State.QUEUED, True), (State.QUEUED, False)]


def test_process_without_its_device_ends_although_postgres_cannot_be_reached(
    real_engine: Engine, worker: Worker, ended: list[int]
) -> None:
    """Its leases then run out by themselves."""
    unreachable = Database("postgresql://nobody@127.0.0.1:1/none", 1)
    real_engine.fatal.set()
    with pytest.raises(Unavailable):
        end_when_fatal(real_engine, unreachable, worker, ended.append)
    assert ended == [EXIT_DEVICE_LOST]


def test_hung_step_trips_the_watchdog(
    database: Database,
    task: Generate,
    model: SteppedModel,
    heartbeat: Heartbeat,
    clock: SetClock,
    ended: list[int],
    make_job: MakeJob,
) -> None:
    job = make_job(width=64, height=64, num_inference_steps=2)
    thread = threading.Thread(target=task, args=(job.id,))
    thread.start()
    assert model.entered.acquire(timeout=60)
    for seconds in (*[5.0] * 11, 4.0):  # as its thread looks
        clock.now += seconds
        heartbeat.beat()
    assert ended == []
    clock.now += 2.0
    heartbeat.beat()
    assert ended == [EXIT_HUNG]
    for _ in range(STEPS):
        model.may_pass.release()
    thread.join(60)
    assert get(database, job.account_id, job.id).state is State.SUCCEEDED
