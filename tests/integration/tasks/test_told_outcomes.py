"""S23: whatever becomes of a job, its task says so under the job's id, from the row that is written."""

from typing import Any

import pytest
from sqlalchemy import text

from catalogue.states import State
from engine.errors import (
    Canceled,
    DeadlineExceeded,
    DeviceLost,
    EngineStopped,
    GenerationFailed,
    NumericError,
)
from local.endpoints import Embedded
from storage import jobs
from storage.database import Database
from storage.job_views import TAKEN_AWAY, Outcome, get, last_event_before, newest_event, taken_away
from storage.jobs import Claim, WorkerName, claim
from tasks.generate import Generate
from tasks.job_observers import JobObserver
from tasks.task_events import TaskEvent
from tests.fixtures.lost_connections import before_it_is_sent, execute_elsewhere, kill

from .conftest import FakeEngine, MakeJob

Told = list[tuple[str, TaskEvent]]


def types_of(told: Told, job_id: str) -> list[str]:
    assert {task_id for task_id, _ in told} == {job_id}
    return [event.type for _, event in told]


def test_S23_a_success_is_told_with_what_it_took(generate: Generate, make_job: MakeJob, told: Told) -> None:
    job = make_job(num_images=2)
    generate(job.id)
    assert types_of(told, job.id) == ["task-started", "task-succeeded"]
    fields = told[-1][1].fields
    assert fields["result"] == "2 images, 1.00 s on the device"
    assert 0 < fields["runtime"] < 30


class Settled(JobObserver):
    """Keeps the outcomes that this worker wrote, as metrics and traces do."""

    def __init__(self) -> None:
        self.states: list[str] = []

    def settled(self, claim: Claim, outcome: Outcome) -> None:  # noqa: ARG002
        self.states.append(outcome.state)


def test_S23_a_success_whose_answer_is_lost_is_told_as_any_success(
    migrated: Embedded,
    database: Database,
    generate: Generate,
    make_job: MakeJob,
    told: Told,
    observers: list[JobObserver],
) -> None:
    """The finish is committed, and the worker cannot know: it tries again, and finds its own success."""

    def commit_and_lose(driver: Any, query: str, parameters: Any) -> None:
        execute_elsewhere(migrated.database_urls["worker"], query, parameters)
        kill(migrated.database_url, driver.info.backend_pid)

    settled = Settled()
    observers.append(settled)
    job = make_job(num_images=2)
    with before_it_is_sent("INSERT INTO images", commit_and_lose) as sent:
        generate(job.id)
    assert len(sent) == 2
    assert settled.states == [State.SUCCEEDED], "written by this worker, and not only found"
    assert types_of(told, job.id) == ["task-started", "task-succeeded"]
    assert told[-1][1].fields["result"] == "2 images, 1.00 s on the device"
    assert len(get(database, job.account_id, job.id).images) == 2


@pytest.mark.parametrize(
    ("error", "type_", "code"),
    [
        (DeadlineExceeded(), "task-failed", "deadline_exceeded"),
        (NumericError(), "task-failed", "numeric_error"),
        (GenerationFailed("ValueError: a red heart"), "task-retried", "generation_failed: ValueError"),
        (EngineStopped(), "task-retried", "engine_stopped"),
        (RuntimeError("a red heart in /home/me"), "task-retried", "internal_error: RuntimeError"),
    ],
)
def test_S23_a_failure_is_told_with_its_code_and_nothing_private(
    generate: Generate,
    engine: FakeEngine,
    make_job: MakeJob,
    told: Told,
    error: Exception,
    type_: str,
    code: str,
) -> None:
    engine.behave = lambda handle: handle.future.set_exception(error)
    job = make_job()
    generate(job.id)
    assert types_of(told, job.id) == ["task-started", type_]
    exception = told[-1][1].fields["exception"]
    assert exception.startswith(code)
    assert "heart" not in exception
    assert "/" not in exception


def test_S23_the_last_try_that_fails_is_a_failure(
    generate: Generate, engine: FakeEngine, make_job: MakeJob, told: Told
) -> None:
    engine.behave = lambda handle: handle.future.set_exception(GenerationFailed("ValueError"))
    job = make_job()
    generate(job.id)
    generate(job.id)
    assert types_of(told, job.id) == ["task-started", "task-retried", "task-started", "task-failed"]
    assert [told[0][1].fields["retries"], told[2][1].fields["retries"]] == [0, 1]


def test_S23_a_job_canceled_while_it_runs_is_revoked(
    database: Database, generate: Generate, engine: FakeEngine, make_job: MakeJob, told: Told
) -> None:
    job = make_job()

    def cancel(handle: object) -> None:
        jobs.cancel(database, job.account_id, job.id)
        handle.future.set_exception(Canceled())  # type: ignore[attr-defined]

    engine.behave = cancel
    generate(job.id)
    assert types_of(told, job.id) == ["task-started", "task-revoked"]


def test_S23_a_job_that_was_canceled_in_the_queue_is_revoked_when_its_message_comes(
    database: Database, generate: Generate, make_job: MakeJob, told: Told
) -> None:
    job = make_job()
    jobs.cancel(database, job.account_id, job.id)
    generate(job.id)
    assert types_of(told, job.id) == ["task-revoked"]


@pytest.mark.parametrize("swept", [True, False])
def test_S23_a_job_that_expired_in_the_queue_is_revoked_as_expired_whether_or_not_it_was_swept(
    database: Database, generate: Generate, make_job: MakeJob, told: Told, swept: bool
) -> None:
    job = make_job(deadline_seconds=0.001)
    if swept:
        while jobs.expire(database):
            pass
    generate(job.id)
    assert types_of(told, job.id) == ["task-revoked"]
    assert told[0][1].fields["expired"]


def test_S23_a_second_message_tells_what_the_row_says(
    generate: Generate, make_job: MakeJob, told: Told
) -> None:
    job = make_job()
    generate(job.id)
    runtime = told[-1][1].fields["runtime"]
    generate(job.id)
    assert types_of(told, job.id) == ["task-started", "task-succeeded", "task-succeeded"]
    again = told[-1][1].fields
    assert again["result"] == told[1][1].fields["result"]
    assert again["runtime"] == pytest.approx(runtime, abs=0.5)


def test_S23_a_second_message_of_a_running_job_says_nothing_and_one_of_no_job_is_revoked(
    worker_database: Database, generate: Generate, make_job: MakeJob, told: Told, tier: str
) -> None:
    job = make_job()
    assert claim(worker_database, job.id, tiers=[tier], worker=WorkerName("b", "w"), lease_seconds=30)
    generate(job.id)
    assert told == []
    generate("job_forged")
    assert types_of(told, "job_forged") == ["task-revoked"]


def test_S23_nothing_is_told_of_a_lost_device_before_its_job_is_taken_up_again(
    database: Database, generate: Generate, engine: FakeEngine, make_job: MakeJob, told: Told
) -> None:
    engine.behave = lambda handle: handle.future.set_exception(DeviceLost("x"))
    job = make_job()
    generate(job.id)
    assert types_of(told, job.id) == ["task-started"]
    assert get(database, job.account_id, job.id).state == "running"


class Broken(JobObserver):
    """An observer that raises whatever it hears."""

    def claimed(self, claim: Claim) -> None:
        raise RuntimeError(claim.job.id)

    def settled(self, claim: Claim, outcome: Outcome) -> None:
        raise RuntimeError(claim.job.id + outcome.state)


def test_S23_who_watches_cannot_undo_what_is_written(
    database: Database, generate: Generate, make_job: MakeJob, told: Told, observers: list[JobObserver]
) -> None:
    observers.insert(0, Broken())
    job = make_job()
    generate(job.id)
    assert get(database, job.account_id, job.id).state == "succeeded"
    assert types_of(told, job.id) == ["task-started", "task-succeeded"]


def test_S23_jobs_that_no_worker_ended_are_found_for_their_tier_if_a_message_was_sent(
    worker_database: Database, database: Database, make_job: MakeJob, tier: str
) -> None:
    before = last_event_before(worker_database, 0)
    canceled, expired = make_job(), make_job(deadline_seconds=0.001)
    unsent = make_job(lane="bulk")
    for job in (canceled, unsent):
        jobs.cancel(database, job.account_id, job.id)
    while jobs.expire(database):
        pass
    reaped, ended = make_job(), make_job()
    for job in (reaped, ended):
        found = claim(worker_database, job.id, tiers=[tier], worker=WorkerName("b", "w"), lease_seconds=0)
        assert found is not None
        if job is ended:
            jobs.fail(worker_database, found.lease, code="x", detail="x", retryable=False)
    jobs.reap(database)
    events = taken_away(worker_database, [tier], after=before, limit=10)
    assert [job_id for _, job_id in events] == [canceled.id, expired.id, reaped.id]
    assert taken_away(worker_database, [tier], after=events[0][0], limit=1) == [events[1]]
    assert taken_away(worker_database, ["another"], after=before, limit=10) == []


def test_S23_a_look_for_them_reads_no_other_events(database: Database, make_job: MakeJob, tier: str) -> None:
    job, canceled = make_job(), make_job()
    before = newest_event(database)
    jobs.cancel(database, canceled.account_id, canceled.id)
    with database.transaction() as connection:
        connection.execute(
            text(
                """INSERT INTO job_events (job_id, transition, state, attempt)
                   SELECT :id, 'claim', 'running', 1 FROM generate_series(1, 20000)"""
            ),
            {"id": job.id},
        )
        connection.execute(text("ANALYZE job_events"))
        query = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {TAKEN_AWAY.text}")
        plan = connection.execute(query, {"after": before, "tiers": [tier], "limit": 100}).scalar_one()
        connection.rollback()
    nodes, open_nodes = [], [plan[0]["Plan"]]
    while open_nodes:
        nodes.append(open_nodes.pop())
        open_nodes += nodes[-1].get("Plans", [])
    (events,) = [node for node in nodes if node.get("Relation Name") == "job_events"]
    assert events["Index Name"] == "events_that_end_jobs"
    assert events["Actual Rows"] + events.get("Rows Removed by Filter", 0) == 1
