"""A lease that ran out while a job ran alone: nobody is charged until its process is known to be dead."""

from collections.abc import Callable

import pytest
from sqlalchemy import text

from catalogue.states import State
from storage import jobs
from storage.database import Database
from storage.isolation import set_isolated
from storage.job_views import Job, get
from storage.jobs import Claim, WorkerName
from storage.possible_crashes import settle_silent
from storage.roles import DatabaseRole
from storage.transition_values import MAX_CRASHES
from storage.workers import Worker, declare_dead, heartbeat
from tests.integration.storage.conftest import MakeJob

SILENT_SECONDS = 600.0
LoseLease = Callable[..., Claim]


@pytest.fixture
def quarantined(database: Database, make_job: MakeJob, claim_job: Callable[..., Claim]) -> Job:
    """A job that was on the device of a process that died."""
    job = make_job()
    claim_job(job.id, worker=WorkerName("before", "before"))
    declare_dead(database, boot_id="before", on_device=None)
    return job


@pytest.fixture
def lose_lease(
    database: Database, databases: dict[DatabaseRole, Database], claim_job: Callable[..., Claim]
) -> LoseLease:
    """Let the lease of a process that runs a job alone run out, and reap the job."""

    def lose(job: Job, boot_id: str) -> Claim:
        claimed = claim_job(job.id, worker=WorkerName(boot_id, boot_id))
        assert set_isolated(databases["worker"], claimed.lease)
        _change(database, "UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE id = :id", job)
        assert (job.id, "queued") in jobs.reap(databases["sweeper"])
        return claimed

    return lose


def _change(database: Database, statement: str, job: Job) -> None:
    with database.transaction() as connection:
        connection.execute(text(statement), {"id": job.id})


def _let_time_pass(database: Database, job: Job, seconds: float = SILENT_SECONDS + 1) -> None:
    """Since its leases ran out."""
    _change(
        database,
        f"UPDATE possible_crashes SET lost_at = lost_at - interval '{seconds} s' WHERE job_id = :id",
        job,
    )


def _beat(databases: dict[DatabaseRole, Database], boot_id: str) -> None:
    worker = Worker(f"w-{boot_id}", boot_id, "host", 1, "cpu:0", ("sd",), 4, 4, "exact")
    heartbeat(databases["worker"], worker, [], lease_seconds=30)


def _num_crashes(database: Database, job: Job) -> int:
    return get(database, job.account_id, job.id).num_crashes


def test_a_lease_that_runs_out_charges_nobody(
    database: Database, quarantined: Job, lose_lease: LoseLease
) -> None:
    """A worker that is stopped or cut off from Postgres, more often than a job may crash."""
    for number in range(MAX_CRASHES + 1):
        lose_lease(quarantined, f"stopped-{number}")
    after = get(database, quarantined.account_id, quarantined.id)
    assert (after.state, after.num_crashes, after.quarantined) == (State.QUEUED, 0, True)


def test_a_job_is_charged_once_its_process_is_known_to_be_dead(
    database: Database, databases: dict[DatabaseRole, Database], quarantined: Job, lose_lease: LoseLease
) -> None:
    """Its host restarted after the lease had run out."""
    lose_lease(quarantined, "on-a-lost-host")
    for _ in range(2):
        declare_dead(databases["worker"], boot_id="on-a-lost-host", on_device=None)
        assert _num_crashes(database, quarantined) == 1


def test_a_job_is_not_charged_for_the_death_of_another_process(
    database: Database, databases: dict[DatabaseRole, Database], quarantined: Job, lose_lease: LoseLease
) -> None:
    lose_lease(quarantined, "stopped")
    declare_dead(databases["worker"], boot_id="another", on_device=None)
    assert _num_crashes(database, quarantined) == 0


@pytest.mark.parametrize(("is_on_device", "num_crashes"), [(True, 1), (False, 0)])
def test_a_job_is_charged_only_if_it_may_have_been_on_the_device_until_the_end(
    database: Database,
    databases: dict[DatabaseRole, Database],
    quarantined: Job,
    lose_lease: LoseLease,
    is_on_device: bool,
    num_crashes: int,
) -> None:
    """A worker that is cut off lets go of the job, and is ended before it can reach Postgres again."""
    boot_id = f"cut-off-{is_on_device}"
    lose_lease(quarantined, boot_id)
    on_device = [quarantined.id] if is_on_device else ["job_of_another"]
    declare_dead(databases["worker"], boot_id=boot_id, on_device=on_device)
    assert _num_crashes(database, quarantined) == num_crashes
    settle_silent(databases["sweeper"], silent_seconds=-1)
    assert _num_crashes(database, quarantined) == num_crashes, "it is settled"


def test_a_process_that_was_heard_of_again_did_not_crash(
    database: Database, databases: dict[DatabaseRole, Database], quarantined: Job, lose_lease: LoseLease
) -> None:
    """What it dies of later is not the job's fault."""
    lose_lease(quarantined, "continued")
    _beat(databases, "continued")
    declare_dead(databases["worker"], boot_id="continued", on_device=None)
    assert _num_crashes(database, quarantined) == 0


def test_a_heartbeat_before_the_lease_ran_out_says_nothing(
    database: Database, databases: dict[DatabaseRole, Database], quarantined: Job, lose_lease: LoseLease
) -> None:
    _beat(databases, "died-later")
    lose_lease(quarantined, "died-later")
    declare_dead(databases["worker"], boot_id="died-later", on_device=None)
    assert _num_crashes(database, quarantined) == 1


@pytest.mark.parametrize(("is_heard", "num_crashes"), [(False, 1), (True, 0)])
def test_a_process_that_stays_silent_counts_as_dead(
    database: Database,
    databases: dict[DatabaseRole, Database],
    quarantined: Job,
    lose_lease: LoseLease,
    is_heard: bool,
    num_crashes: int,
) -> None:
    """Its host never came back, so that nothing declares it dead."""
    boot_id = f"never-back-{is_heard}"
    lose_lease(quarantined, boot_id)
    sweeper = databases["sweeper"]
    assert settle_silent(sweeper, silent_seconds=SILENT_SECONDS) == []
    assert _num_crashes(database, quarantined) == 0
    if is_heard:
        _beat(databases, boot_id)
    _let_time_pass(database, quarantined)
    charged = [quarantined.id] * num_crashes
    assert settle_silent(sweeper, silent_seconds=SILENT_SECONDS) == charged
    assert settle_silent(sweeper, silent_seconds=SILENT_SECONDS) == []
    assert _num_crashes(database, quarantined) == num_crashes


def test_a_job_that_takes_its_hosts_down_ends(
    database: Database, databases: dict[DatabaseRole, Database], quarantined: Job, lose_lease: LoseLease
) -> None:
    """Each of them is known to be dead only after the next one runs the job."""
    for number in range(MAX_CRASHES):
        lose_lease(quarantined, f"host-{number}")
    _let_time_pass(database, quarantined)
    settle_silent(databases["sweeper"], silent_seconds=SILENT_SECONDS)
    assert _num_crashes(database, quarantined) == MAX_CRASHES
    worker = WorkerName("last", "last")
    assert jobs.claim(databases["worker"], quarantined.id, tiers=["sd"], worker=worker, lease_seconds=30)
    assert declare_dead(databases["worker"], boot_id="last", on_device=set()) == [(quarantined.id, "failed")]
    assert get(database, quarantined.account_id, quarantined.id).error_code == "worker_lost"


def test_a_job_that_has_ended_is_not_charged(
    database: Database,
    databases: dict[DatabaseRole, Database],
    quarantined: Job,
    lose_lease: LoseLease,
) -> None:
    lose_lease(quarantined, "silent")
    jobs.cancel(database, quarantined.account_id, quarantined.id)
    _let_time_pass(database, quarantined)
    assert settle_silent(databases["sweeper"], silent_seconds=SILENT_SECONDS) == []
    assert _num_crashes(database, quarantined) == 0
    with database.transaction() as connection:
        count = text("SELECT count(*) FROM possible_crashes WHERE job_id = :id")
        assert connection.execute(count, {"id": quarantined.id}).scalar_one() == 0
