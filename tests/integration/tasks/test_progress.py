"""S24: progress moves between heartbeats, by one statement for all jobs of a worker, and holds nobody up."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace

import pytest
from sqlalchemy import text

from engine.request import GeneratedImage
from storage import jobs
from storage.database import Database
from storage.errors import Unavailable
from storage.job_views import get
from storage.jobs import Claim, Lease, WorkerName, claim
from storage.workers import Worker, heartbeat, write_progress
from storage.workloads import workload
from tasks.in_flight import InFlightJobs, ProgressWriter

from .conftest import MakeJob

WORKER = Worker("cpu:0@test/b", "boot-progress", "host", 1, "cpu:0", (), 8, 8, "exact")


class Moving:
    """A generation whose progress the test moves."""

    def __init__(self) -> None:
        self.progress = 0.0
        self.future: Future[GeneratedImage] = Future()

    def cancel(self) -> None:
        raise AssertionError


def claimed(database: Database, make_job: MakeJob, tier: str) -> Claim:
    job = make_job()
    found = claim(
        database, job.id, tiers=[tier], worker=WorkerName(WORKER.boot_id, WORKER.id), lease_seconds=30
    )
    assert found is not None
    return found


def progress_of(database: Database, one: Claim) -> float:
    return get(database, one.job.account_id, one.job.id).progress


def test_S24_progress_is_written_for_all_jobs_at_once_and_never_falls(
    worker_database: Database, database: Database, make_job: MakeJob, tier: str
) -> None:
    held = [claimed(worker_database, make_job, tier) for _ in range(3)]
    moved = [(one.lease, 0.25 * (index + 1)) for index, one in enumerate(held)]
    assert write_progress(worker_database, moved) == 3
    assert [progress_of(database, one) for one in held] == [0.25, 0.5, 0.75]
    assert write_progress(worker_database, [(one.lease, 0.5) for one in held]) == 1
    assert [progress_of(database, one) for one in held] == [0.5, 0.5, 0.75]


def test_S24_who_lost_its_lease_writes_no_progress(
    worker_database: Database, database: Database, make_job: MakeJob, tier: str
) -> None:
    one = claimed(worker_database, make_job, tier)
    for lease in (replace(one.lease, attempt=2), replace(one.lease, token="0" * 32)):
        assert write_progress(worker_database, [(lease, 0.5)]) == 0
    jobs.fail(worker_database, one.lease, code="x", detail="x", retryable=False)
    assert write_progress(worker_database, [(one.lease, 0.5)]) == 0
    assert progress_of(database, one) == 0


def test_S24_progress_waits_for_no_row_that_another_holds(
    worker_database: Database, database: Database, make_job: MakeJob, tier: str
) -> None:
    free, locked = (claimed(worker_database, make_job, tier) for _ in range(2))
    with database.transaction() as connection:
        connection.execute(text("SELECT FROM jobs WHERE id = :id FOR UPDATE"), {"id": locked.job.id})
        assert write_progress(worker_database, [(free.lease, 0.5), (locked.lease, 0.5)]) == 1
    assert (progress_of(database, free), progress_of(database, locked)) == (0.5, 0.0)


def test_S24_an_estimate_counts_on_from_when_progress_was_written(
    worker_database: Database, database: Database, make_job: MakeJob, tier: str
) -> None:
    worker = replace(WORKER, tiers=(tier,))
    one = claimed(worker_database, make_job, tier)
    heartbeat(worker_database, worker, [(one.lease, 0.0)], lease_seconds=30)
    with database.transaction() as connection:
        connection.execute(
            text("UPDATE jobs SET started_at = started_at - interval '60 s' WHERE id = :id"),
            {"id": one.job.id},
        )

    def seconds() -> float:
        (job,) = (job for job in workload(database, alive_seconds=20).running if job.id == one.job.id)
        return job.seconds_since_progress

    assert 60 <= seconds() < 90
    write_progress(worker_database, [(one.lease, 0.5)])
    assert 0 <= seconds() < 30


def test_S24_no_index_holds_progress_so_that_its_writes_stay_in_their_page(database: Database) -> None:
    query = text("SELECT indexdef FROM pg_indexes WHERE tablename = 'jobs'")
    with database.transaction() as connection:
        found = list(connection.execute(query).scalars())
    assert found
    assert not any("progress" in definition for definition in found)


@pytest.fixture
def held() -> Iterator[tuple[InFlightJobs, list[Moving]]]:
    """Sixteen held jobs."""
    in_flight, generations = InFlightJobs(), [Moving() for _ in range(16)]
    with ExitStack() as stack:
        for index, generation in enumerate(generations):
            stack.enter_context(in_flight.hold(Lease(f"job_{index}", 1, "t"))).watch([generation])
        yield in_flight, generations


def test_S24_a_turn_is_one_write_for_all_that_moved_and_none_if_nothing_did(
    held: tuple[InFlightJobs, list[Moving]],
) -> None:
    in_flight, generations = held
    written: list[list[str]] = []
    writer = ProgressWriter(
        in_flight, lambda moved: written.append([f"{lease.job_id} {progress}" for lease, progress in moved])
    )
    writer.turn()
    assert written == [], "nothing has moved yet"
    for generation in generations:
        generation.progress = 0.5
    writer.turn()
    writer.turn()
    assert [len(moved) for moved in written] == [16]
    generations[3].progress = 0.75
    writer.turn()
    assert written[1:] == [["job_3 0.75"]]


def test_S24_progress_that_cannot_be_written_is_dropped_and_the_next_is_written(
    held: tuple[InFlightJobs, list[Moving]],
) -> None:
    in_flight, generations = held
    tried: list[Sequence[tuple[Lease, float]]] = []
    is_away = True

    def write(moved: Sequence[tuple[Lease, float]]) -> None:
        tried.append(moved)
        if is_away:
            raise Unavailable("the database is away")

    writer = ProgressWriter(in_flight, write)
    generations[0].progress = 0.25
    writer.turn()
    writer.turn()
    assert len(tried) == 1, "it is not tried again"
    is_away = False
    generations[0].progress = 0.5
    writer.turn()
    assert [progress for _, progress in tried[-1]] == [0.5]


def test_S24_a_write_that_hangs_is_followed_by_none_until_it_ends(
    held: tuple[InFlightJobs, list[Moving]],
) -> None:
    """So that nothing queues up; the heartbeat and the engine have threads of their own."""
    in_flight, generations = held
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def write(_: Sequence[tuple[Lease, float]]) -> None:
        begun.release()
        assert go_on.acquire(timeout=30)

    writer = ProgressWriter(in_flight, write, pause_seconds=0.001)
    generations[0].progress = 0.25
    writer.start()
    assert begun.acquire(timeout=30)
    generations[0].progress = 0.5
    assert not begun.acquire(timeout=0.1)
    go_on.release()
    assert begun.acquire(timeout=30), "what is true by then is written next"
    writer.stop()
    go_on.release()
