"""While Postgres, the broker or S3 hangs the API answers, nothing is lost, and all is well soon afterwards.

The whole system runs behind proxies that pass nothing on, or over servers that are halted.
`make bench-faults` is the same at full length, with the other ways to fail.
"""

from collections.abc import Iterator

import pytest

from bench.fault_figures import Cell
from bench.fault_system import STOPPED, System, run_system
from bench.faults import measure
from bench.faulty_proxy import Fault

HUNG_SECONDS, POSTGRES_HUNG_SECONDS = 4.0, 8.0
POSTGRES_WAVE_SECONDS = 1.0
"""So that a whole wave meets the hang, and not only what the first has left, which may be nothing."""
MAX_MOMENT_SECONDS, MAX_REFUSAL_SECONDS, MAX_SECONDS_UNTIL_WELL = 3.0, 10.0, 30.0
"""The bars of `bench.fault_figures`, with room for a machine that does other things too."""

pytestmark = pytest.mark.timeout(120)
hangs = pytest.mark.parametrize("how", [Fault.HUNG, STOPPED])


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, kept_self_tests: dict[str, str]) -> Iterator[System]:
    with run_system(tmp_path_factory.mktemp("hung"), kept_self_tests) as running:
        yield running


def assert_answered(cell: Cell, *, max_submission_seconds: float) -> None:
    longest = cell.longest
    assert all(one.num_requests > 0 and one.num_unanswered == 0 for one in longest.values()), longest
    assert longest["healthz"].seconds < MAX_MOMENT_SECONDS
    assert longest["readyz"].seconds < cell.fault_seconds - 0.5, "while it hangs, and not once it is back"
    assert longest["submission"].seconds < max_submission_seconds
    assert longest["status"].seconds < MAX_REFUSAL_SECONDS


def assert_nothing_is_lost_and_all_is_well(cell: Cell) -> None:
    assert (cell.num_lost, cell.num_doubled) == (0, 0)
    assert cell.num_accepted > 36
    assert cell.well_seconds is not None
    assert cell.well_seconds < MAX_SECONDS_UNTIL_WELL


@hangs
def test_S1_readyz_answers_while_s3_hangs(system: System, how: str) -> None:
    cell = measure(system, "s3", how, HUNG_SECONDS)
    assert_answered(cell, max_submission_seconds=MAX_MOMENT_SECONDS)
    assert cell.num_refused == {}
    assert_nothing_is_lost_and_all_is_well(cell)


@hangs
def test_S2_submissions_are_accepted_while_the_broker_hangs(system: System, how: str) -> None:
    cell = measure(system, "broker", how, HUNG_SECONDS)
    assert_answered(cell, max_submission_seconds=MAX_MOMENT_SECONDS)
    assert cell.num_refused == {}
    assert_nothing_is_lost_and_all_is_well(cell)


@hangs
def test_S3_requests_are_refused_in_time_while_postgres_hangs_and_it_recovers_by_itself(
    system: System, how: str
) -> None:
    cell = measure(system, "postgres", how, POSTGRES_HUNG_SECONDS, wave_seconds=POSTGRES_WAVE_SECONDS)
    assert_answered(cell, max_submission_seconds=MAX_REFUSAL_SECONDS)
    assert set(cell.num_refused) == {"503"}
    assert cell.num_refused_without_retry_after == 0
    assert_nothing_is_lost_and_all_is_well(cell)
