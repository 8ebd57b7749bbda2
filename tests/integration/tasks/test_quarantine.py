"""Who is charged when a process dies: a worker around a real engine, whose model and bucket obey the test."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text

from catalogue.states import State
from engine.engine import Engine
from engine.errors import EngineStopped
from storage import jobs
from storage.blobs import Blobs
from storage.database import Database
from storage.job_views import Job, get
from storage.jobs import WorkerName
from storage.workers import declare_dead
from tasks.generate import Generate, GeneratePlan
from tasks.in_flight import InFlightJobs
from tasks.isolation import Isolations, NotIsolated
from tests.integration.tasks.conftest import MakeJob
from tests.unit.engine.fakes import FakeModel

SIZE = {"width": 64, "height": 64}
UNREACHABLE = "postgresql://nobody@127.0.0.1:1/none"


class SlowBlobs:
    """The bucket, which takes what it is given only when the test lets it."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self.asked, self.may_store = threading.Event(), threading.Event()

    def put(self, *args: Any, **kwargs: Any) -> Any:
        self.asked.set()
        assert self.may_store.wait(60)
        return self._blobs.put(*args, **kwargs)


class Process:
    """A worker process: its jobs run in threads, and it can die."""

    def __init__(self, database: Database, blobs: SlowBlobs, tier: str, isolations: Isolations) -> None:
        self.database, self.boot_id = database, f"b-{tier}"
        self.on_predict: Callable[[int], None] = lambda _: None
        self.num_steps = 0
        model = FakeModel()
        model.on_predict = self._predict
        self.engine = Engine({"tiny": model}, {"tiny": {64 * 64: 8}}, determinism="exact")
        self._generate = Generate(
            db=database,
            blobs=blobs,  # type: ignore[arg-type]
            submit=self.engine.submit,
            in_flight=InFlightJobs(),
            isolations=isolations,
            worker=WorkerName(self.boot_id, self.boot_id),
            tiers=(tier,),
            plan=GeneratePlan(),
        )
        self._threads: list[threading.Thread] = []

    def _predict(self) -> None:
        self.num_steps += 1
        self.on_predict(self.num_steps)

    def run(self, *made: Job) -> None:
        """Run each on a thread of its own."""
        for job in made:
            self._threads.append(threading.Thread(target=self._generate, args=(job.id,), daemon=True))
            self._threads[-1].start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def die(self) -> None:
        """As soon as its device is lost: its jobs are taken back."""
        assert self.engine.fatal.wait(60)
        declare_dead(self.database, boot_id=self.boot_id, on_device=None)


@pytest.fixture
def slow_blobs(blobs: Blobs) -> SlowBlobs:
    return SlowBlobs(blobs)


StartProcess = Callable[..., Process]


@pytest.fixture
def start_process(worker_database: Database, slow_blobs: SlowBlobs, tier: str) -> Iterator[StartProcess]:
    started: list[Process] = []

    def start(isolations: Isolations | None = None) -> Process:
        own = isolations or Isolations(worker_database)
        started.append(Process(worker_database, slow_blobs, tier, own))
        return started[-1]

    yield start
    slow_blobs.may_store.set()
    for process in started:
        process.engine.stop()
        process.join()


@pytest.fixture
def make_quarantined(database: Database, make_job: MakeJob, tier: str) -> MakeJob:
    """A job whose worker died."""

    def make(**changes: object) -> Job:
        job = make_job(**{**SIZE, **changes})
        worker = WorkerName(f"dead-{tier}", "dead")
        assert jobs.claim(database, job.id, tiers=[tier], worker=worker, lease_seconds=30)
        declare_dead(database, boot_id=worker.boot_id, on_device=None)
        return job

    return make


def now(database: Database, job: Job) -> Job:
    return get(database, job.account_id, job.id)


@pytest.mark.parametrize("is_quarantined", [True, False])
def test_a_quarantined_job_is_not_charged_for_what_runs_while_its_images_are_stored(
    database: Database,
    slow_blobs: SlowBlobs,
    start_process: StartProcess,
    make_quarantined: MakeJob,
    make_job: MakeJob,
    is_quarantined: bool,
) -> None:
    innocent = make_quarantined()
    culprit = (make_quarantined if is_quarantined else make_job)(prompt="lose the device", **SIZE)
    process = start_process()
    process.engine.start()
    process.run(innocent)
    assert slow_blobs.asked.wait(60)
    process.run(culprit)
    process.die()
    assert now(database, innocent).num_crashes == 0
    assert now(database, culprit).num_crashes == (1 if is_quarantined else 0), (
        "who was no quarantined is one now"
    )


def test_a_quarantined_job_is_not_charged_for_what_runs_between_its_images(
    database: Database, start_process: StartProcess, make_quarantined: MakeJob, make_job: MakeJob
) -> None:
    quarantined = make_quarantined(lane="bulk", num_images=2)
    culprit = make_job(prompt="lose the device", **SIZE)
    process = start_process()
    with _step_held(process, 1):
        process.engine.start()
        process.run(quarantined)
        _wait_for(lambda: process.engine.num_generations == 2 and process.num_steps == 1)
        process.run(culprit)  # interactive: its turn comes as soon as the first image lets go
        _wait_for(lambda: process.engine.num_generations == 3)
    process.die()
    assert process.num_steps == quarantined.parameters.num_inference_steps + 1
    assert (now(database, quarantined).num_crashes, now(database, culprit).num_crashes) == (0, 0)


def test_a_quarantined_job_is_charged_for_the_crash_of_any_of_its_images(
    database: Database, start_process: StartProcess, make_quarantined: MakeJob
) -> None:
    quarantined = make_quarantined(num_images=2)
    process = start_process()

    def lose_the_device_at_the_second_image(num_steps: int) -> None:
        if num_steps > quarantined.parameters.num_inference_steps:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    process.on_predict = lose_the_device_at_the_second_image
    process.engine.start()
    process.run(quarantined)
    process.die()
    assert process.num_steps == quarantined.parameters.num_inference_steps + 1
    assert now(database, quarantined).num_crashes == 1


def test_a_quarantined_job_of_several_images_comes_to_its_end(
    database: Database, slow_blobs: SlowBlobs, start_process: StartProcess, make_quarantined: MakeJob
) -> None:
    quarantined = make_quarantined(num_images=3)
    process = start_process()
    process.engine.start()
    process.run(quarantined)
    assert slow_blobs.asked.wait(60)
    _wait_for(lambda: now(database, quarantined).progress == 1)
    assert (now(database, quarantined).state, now(database, quarantined).isolated) == (State.RUNNING, False)
    slow_blobs.may_store.set()
    process.join()
    assert now(database, quarantined).state is State.SUCCEEDED


def test_a_quarantined_job_is_given_back_uncharged_when_its_row_cannot_be_flagged(
    database: Database, start_process: StartProcess, make_quarantined: MakeJob
) -> None:
    quarantined = make_quarantined(num_images=2)
    process = start_process(Isolations(Database(UNREACHABLE, 1)))
    process.engine.start()
    process.run(quarantined)
    process.join()
    after = now(database, quarantined)
    assert (after.state, after.num_failures, after.num_crashes) == (State.QUEUED, 0, 0)
    assert process.num_steps == 0


def test_the_engine_waits_for_a_mark_no_longer_than_it_is_told(
    database: Database,
    slow_blobs: SlowBlobs,
    start_process: StartProcess,
    make_quarantined: MakeJob,
    make_job: MakeJob,
) -> None:
    """Somebody has locked the row of the quarantined job; the work of others goes on all the same."""
    quarantined, other = make_quarantined(num_images=4), make_job(**SIZE)
    process = start_process(Isolations(database, wait_seconds=0.3))
    slow_blobs.may_store.set()
    process.run(quarantined)
    _wait_for(lambda: process.engine.num_generations == 4)
    with database.transaction() as connection:
        connection.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": quarantined.id})
        process.run(other)
        process.engine.start()
        _wait_for(lambda: now(database, other).state is State.SUCCEEDED)
        _wait_for(lambda: process.engine.num_generations == 0)
    process.join()
    after = now(database, quarantined)
    assert (after.state, after.num_failures, after.num_crashes) == (State.QUEUED, 0, 0)
    assert process.num_steps == other.parameters.num_inference_steps


def test_a_mark_that_cannot_be_taken_off_holds_nobody_up(
    database: Database, slow_blobs: SlowBlobs, start_process: StartProcess, make_quarantined: MakeJob
) -> None:
    quarantined = make_quarantined()
    process = start_process(Isolations(database, wait_seconds=0.3))
    slow_blobs.may_store.set()
    with database.transaction() as connection:
        with _step_held(process, quarantined.parameters.num_inference_steps):
            process.engine.start()
            process.run(quarantined)
            _wait_for(lambda: process.num_steps == quarantined.parameters.num_inference_steps)
            connection.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": quarantined.id})
        _wait_for(lambda: process.engine.num_generations == 0)
    process.join()
    assert now(database, quarantined).state is State.SUCCEEDED


def test_an_image_that_did_not_begin_takes_off_no_mark(
    database: Database, make_quarantined: MakeJob, tier: str
) -> None:
    quarantined = make_quarantined(num_images=2)
    claim = jobs.claim(database, quarantined.id, tiers=[tier], worker=WorkerName("b", "w"), lease_seconds=30)
    assert claim is not None
    mark = Isolations(database).of(claim)
    failed: Future[object] = Future()
    failed.set_exception(EngineStopped())
    mark.begin(0)
    mark.end(1, failed)
    assert now(database, quarantined).isolated
    mark.end(0, failed)
    assert not now(database, quarantined).isolated


def test_a_job_that_was_refused_its_mark_is_not_waited_for_again(
    database: Database, make_quarantined: MakeJob, tier: str
) -> None:
    """Its other images are canceled a moment later; the engine must not stand still for each until then."""
    quarantined = make_quarantined(num_images=2)
    claim = jobs.claim(database, quarantined.id, tiers=[tier], worker=WorkerName("b", "w"), lease_seconds=30)
    assert claim is not None
    mark = Isolations(database, wait_seconds=0.1).of(claim)
    with database.transaction() as connection:
        connection.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": quarantined.id})
        with pytest.raises(NotIsolated):
            mark.begin(0)
    with pytest.raises(NotIsolated):
        mark.begin(1)


def test_only_quarantined_jobs_are_isolated(
    database: Database, slow_blobs: SlowBlobs, start_process: StartProcess, make_job: MakeJob
) -> None:
    """No other job asks the database for more, and none needs what isolation needs."""
    job = make_job(**SIZE)
    process = start_process(Isolations(Database(UNREACHABLE, 1)))
    slow_blobs.may_store.set()
    process.engine.start()
    process.run(job)
    process.join()
    assert now(database, job).state is State.SUCCEEDED


@contextmanager
def _step_held(process: Process, number: int) -> Iterator[None]:
    """That forward pass does not end before the block does."""
    may_pass = threading.Event()

    def wait(num_steps: int) -> None:
        if num_steps == number:
            assert may_pass.wait(60)

    process.on_predict = wait
    yield
    may_pass.set()


def _wait_for(is_so: Callable[[], bool]) -> None:
    ticks, waited = threading.Event(), 0
    while not is_so():
        waited += 1
        assert waited < 2000, "it never came"
        ticks.wait(0.01)
