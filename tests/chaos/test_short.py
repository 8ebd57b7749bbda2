"""`make chaos` in minutes: a few faults of each kind, and two mutants that must be caught."""

from collections.abc import Iterator

import pytest

from tests.chaos.crashes import API_POINTS, WORKER_POINTS
from tests.chaos.kills import kill_apis, kill_workers
from tests.chaos.messages import flood
from tests.chaos.pauses import pause_workers
from tests.chaos.report import Row
from tests.chaos.restarts import restart_workers
from tests.chaos.services import break_broker, break_postgres, spoil_uploads
from tests.chaos.system import System, chaos_system

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


def test_messages_that_nobody_needs_do_nothing(system: System) -> None:
    row = flood(system, 500, SEED)
    assert row.holds, told(row)


def test_jobs_get_through_a_broker_that_loses_everything_and_dies(system: System) -> None:
    row = break_broker(system, 2, SEED)
    assert row.holds, told(row)


def test_nothing_is_acknowledged_that_a_failing_postgres_does_not_have(system: System) -> None:
    row = break_postgres(system, 2, SEED)
    assert row.holds, told(row)


def test_no_success_is_unreadable_where_the_object_store_fails(system: System) -> None:
    row = spoil_uploads(system, 80, SEED)
    assert row.holds, told(row)


def test_a_guard_without_its_token_is_caught(system: System) -> None:
    row = pause_workers(system, 6, SEED, mutant="guard without its token", points=["stored"])
    assert row.findings.misattributed + row.findings.duplicated + row.findings.lost, told(row)


def test_rows_that_are_scattered_off_by_one_are_caught(system: System) -> None:
    row = restart_workers(system, 1, SEED, min_jobs=30, mutant="scatter off by one")
    assert row.findings.misattributed, told(row)
