"""A heartbeat says whether other workers serve the same tiers, and which are closed to this one."""

import secrets

from storage.database import Database
from storage.jobs import WorkerName, claim
from storage.paused_tiers import pause, resume
from storage.roles import DatabaseRole
from storage.workers import (
    Worker,
    ask_to_drain,
    heartbeat,
    live_workers,
    num_live_workers,
    num_running,
    take_jobs_again,
)
from tests.integration.storage.conftest import MakeJob


def beats(database: Database, id_: str, *tiers: str, is_leaving: bool = False) -> bool:
    """Whether a worker with these tiers hears of another one."""
    worker = Worker(id_, f"boot-{id_}", "host", 1, "cpu:0", tiers, 1, 1, "exact")
    return heartbeat(database, worker, [], lease_seconds=30, is_leaving=is_leaving).has_others


def test_a_worker_hears_of_another_one_that_serves_one_of_its_tiers(database: Database) -> None:
    one, other, shared, own = (secrets.token_hex(6) for _ in range(4))
    assert not beats(database, one, shared, own)
    assert not beats(database, f"{other}-elsewhere", f"{own}-elsewhere")
    assert not beats(database, one, shared, own)
    assert beats(database, other, shared)
    assert beats(database, one, shared, own)


def test_a_worker_that_leaves_or_is_silent_is_no_other(database: Database) -> None:
    one, other, tier = (secrets.token_hex(6) for _ in range(3))
    beats(database, other, tier)
    assert beats(database, one, tier)
    beats(database, other, tier, is_leaving=True)
    assert not beats(database, one, tier)
    beats(database, other, tier)
    silent = Worker(one, f"boot-{one}", "host", 1, "cpu:0", (tier,), 1, 1, "exact")
    assert not heartbeat(database, silent, [], lease_seconds=0).has_others


def worker_of(id_: str, *tiers: str) -> Worker:
    return Worker(id_, f"boot-{id_}", "host", 1, "cpu:0", tiers, 1, 1, "exact")


def test_a_heartbeat_tells_a_worker_which_tiers_are_closed_to_it(
    databases: dict[DatabaseRole, Database], database: Database
) -> None:
    one, tier, other = (secrets.token_hex(6) for _ in range(3))

    def closed() -> frozenset[str]:
        return heartbeat(databases["worker"], worker_of(one, tier, other), [], lease_seconds=30).closed_tiers

    assert closed() == set()
    pause(database, [tier, f"{tier}-elsewhere"])
    assert closed() == {tier}
    ask_to_drain(database, [one])
    assert closed() == {tier, other}
    take_jobs_again(database, [one])
    assert closed() == {tier}
    resume(database, [tier])
    assert closed() == set()


def test_a_drained_worker_is_not_counted_and_its_successor_is(database: Database) -> None:
    one, other, tier = (secrets.token_hex(6) for _ in range(3))
    beats(database, one, tier)
    assert beats(database, other, tier)
    ask_to_drain(database, [one])
    assert not beats(database, other, tier), "it is no other worker that takes jobs"
    assert num_live_workers(database, 30)[tier] == 1
    listed = {worker.id: worker for worker in live_workers(database, 30, with_drained=True)}
    assert listed[one].drain_requested_at is not None
    beats(database, f"{one}-next", tier)
    assert num_live_workers(database, 30)[tier] == 2


def test_the_jobs_that_a_process_runs_are_counted(database: Database, make_job: MakeJob) -> None:
    boot_id, idle = secrets.token_hex(6), secrets.token_hex(6)
    for _ in range(2):
        assert claim(database, make_job().id, tiers=["sd"], worker=WorkerName(boot_id, "w"), lease_seconds=30)
    assert num_running(database, [boot_id, idle]) == {boot_id: 2}
