"""`make chaos` in minutes: a few faults of each kind, and two mutants that must be caught."""

import signal
import time
from collections.abc import Iterator

import pytest

from client.calotype import Client
from tests.chaos import worker_program
from tests.chaos.crashes import API_POINTS, WORKER_POINTS
from tests.chaos.kills import kill_apis, kill_workers
from tests.chaos.messages import flood
from tests.chaos.pauses import pause_workers
from tests.chaos.report import Row
from tests.chaos.restarts import restart_workers
from tests.chaos.services import break_broker, break_postgres, spoil_uploads
from tests.chaos.system import (
    START_SECONDS,
    STOP_SECONDS,
    Kept,
    System,
    chaos_system,
    kept,
    wait_until,
)

SEED = 7


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One system for all rows, each of which checks its own jobs."""
    with chaos_system(tmp_path_factory.mktemp("chaos")) as running:
        yield running


def told(row: Row) -> str:
    return "\n".join([str(row.as_json()), *row.findings.reasons])


def test_no_job_is_lost_where_workers_are_killed(system: System) -> None:
    row = kill_workers(system, 12, SEED)
    assert row.holds, told(row)
    assert row.details["by point"] == dict.fromkeys(WORKER_POINTS, 2), "each boundary twice"


def test_no_request_is_lost_or_made_twice_where_the_api_is_killed(system: System) -> None:
    row = kill_apis(system, 6, SEED)
    assert row.holds, told(row)
    assert row.details["by point"] == dict.fromkeys(API_POINTS, 2)


def test_a_worker_that_was_stopped_past_its_lease_writes_nothing(system: System) -> None:
    row = pause_workers(system, 4, SEED)
    assert row.holds, told(row)


def test_no_client_sees_a_rolling_restart(system: System) -> None:
    row = restart_workers(system, 1, SEED)
    assert row.holds, told(row)


def test_a_second_sigterm_gives_back_at_once_what_a_worker_holds(system: System) -> None:
    """With steps so slow that a drain would take minutes."""
    hurried = Kept(system, "hurried", worker_program.serve, "worker", lambda: None, step_seconds=2.0)
    query = "SELECT state, num_failures, quarantined FROM jobs WHERE id = %s"
    key = system.accounts[0].api_key
    with Client(url=system.url, api_key=key) as client:
        job_id = client.submit("a picture", width=64, height=64, num_inference_steps=100).id
        with kept([hurried]):
            wait_until(lambda: system.rows(query, job_id)[0].state == "running", START_SECONDS, "it runs")
            begun_at = time.monotonic()
            hurried.end()
            time.sleep(1)  # two signals at the same time are one
            hurried.signal(signal.SIGTERM)
            hurried.join()
        assert time.monotonic() - begun_at < STOP_SECONDS / 2, "it is not killed"
        assert system.rows(query, job_id) == [("queued", 0, False)]
        client.cancel(job_id)


def test_messages_that_nobody_needs_do_nothing(system: System) -> None:
    row = flood(system, 500, SEED)
    assert row.holds, told(row)


def test_jobs_get_through_a_broker_that_loses_everything_and_dies(system: System) -> None:
    row = break_broker(system, 2, SEED)
    assert row.holds, told(row)


def test_nothing_is_acknowledged_that_a_failing_postgres_does_not_have(system: System) -> None:
    row = break_postgres(system, 2, SEED, window_seconds=0)
    assert row.holds, told(row)


def test_no_success_is_unreadable_where_the_object_store_fails(system: System) -> None:
    row = spoil_uploads(system, 80, SEED)
    assert row.holds, told(row)


def test_a_guard_without_its_token_is_caught(system: System) -> None:
    # A pause shows nothing if no job of the stopped worker runs elsewhere when it goes on.
    for seed in range(SEED, SEED + 3):
        row = pause_workers(system, 6, seed, mutant="guard without its token", points=["stored"])
        if row.findings.misattributed + row.findings.duplicated + row.findings.lost:
            return
    pytest.fail(told(row))


def test_rows_that_are_scattered_off_by_one_are_caught(system: System) -> None:
    row = restart_workers(system, 1, SEED, min_jobs=30, mutant="scatter off by one")
    assert row.findings.misattributed, told(row)
