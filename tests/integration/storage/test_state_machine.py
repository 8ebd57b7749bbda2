"""Whatever processes do to jobs, in any order and with any lease, each row is what the state machine says."""

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from storage.database import Database
from storage.roles import DatabaseRole
from tests.integration.storage.job_machine import JobMachine

SETTINGS = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,  # of a step: the machine may be busy
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)


def test_every_row_is_what_the_state_machine_says_whatever_happens(
    databases: dict[DatabaseRole, Database], database: Database
) -> None:
    # It takes anything that makes a machine; its types say only a class.
    run_state_machine_as_test(lambda: JobMachine(databases, database), settings=SETTINGS)  # type: ignore[arg-type]
