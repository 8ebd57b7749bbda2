"""The promises of the sweeper, on a real Postgres and a real Valkey."""

import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import redis
from sqlalchemy import text

from catalogue.states import State
from local.endpoints import Embedded
from storage import accounts, dispatches, jobs, sessions
from storage.database import WATCHERS, Database
from storage.due_work import all_work, due_work
from storage.errors import Unavailable
from storage.isolation import set_isolated
from storage.job_views import get
from storage.jobs import WorkerName
from storage.notifications import Listener
from storage.roles import DatabaseRole
from storage.workers import declare_dead
from tasks.app import make_celery
from tasks.broker import Broker
from tasks.dispatch import Dispatcher
from tasks.metrics.sweeper import SweeperMetrics
from tasks.queues import CPU_QUEUE
from tasks.sweeper import Sweeper, SweepPlan, dispatching_when_told
from tests.integration.tasks.conftest import MakeJob


class Bench:
    """A sweeper with its broker, and a look into its queues."""

    def __init__(self, services: Embedded, database: Database, tier: str, plan: SweepPlan) -> None:
        self.prefix = f"sweep-{secrets.token_hex(4)}:"
        self.tier = tier
        self.url = services.broker_url
        self.broker = Broker(services.broker_url, self.prefix)
        self.redis = redis.Redis.from_url(services.broker_url)
        celery = make_celery(services.broker_url, self.prefix, [tier])
        self.dispatcher = Dispatcher(celery)
        self.metrics = SweeperMetrics()
        self.sweeper = Sweeper(database, self.broker, self.dispatcher, [tier], plan, metrics=self.metrics)

    def depth(self, lane: str) -> int:
        return self.broker.depth(f"{self.tier}.{lane}")

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0

    def wipe(self) -> None:
        for key in self.redis.scan_iter(self.prefix + "*"):
            self.redis.delete(key)


@pytest.fixture
def bench(migrated: Embedded, databases: dict[DatabaseRole, Database], tier: str) -> Iterator[Bench]:
    """A sweeper that has turned once, and for which a dispatch may be lost at once."""
    bench = Bench(migrated, databases["sweeper"], tier, SweepPlan(redispatch_seconds=0.001))
    bench.sweeper.sweep()
    yield bench
    bench.redis.close()
    bench.broker.close()


@pytest.mark.usefixtures("outbox")
def test_a_receiver_that_is_down_puts_only_a_few_bells_into_the_broker(
    bench: Bench, database: Database, make_job: MakeJob
) -> None:
    for _ in range(30):
        job = make_job(webhook_url="https://hooks.example.com/")
        jobs.cancel(database, job.account_id, job.id)
    bench.sweeper.sweep()
    assert bench.broker.depth(CPU_QUEUE) == 4
    for _ in range(60):  # nobody hears them, and each turn finds them lost
        bench.sweeper.sweep()
    assert bench.broker.depth(CPU_QUEUE) <= 200


@pytest.mark.usefixtures("outbox")
def test_a_delivery_is_dispatched_at_once_when_its_job_ends(
    bench: Bench, migrated: Embedded, database: Database, make_job: MakeJob
) -> None:
    """No turn of the sweeper comes meanwhile: Postgres notifies."""
    stop, listener = threading.Event(), Listener(migrated.database_urls["sweeper"])
    with dispatching_when_told(bench.sweeper.deliveries, listener, stop):
        for number in (1, 2):
            job = make_job(webhook_url=f"https://{number}.example.com/")
            jobs.cancel(database, job.account_id, job.id)
            deadline = time.monotonic() + 60
            while bench.broker.depth(CPU_QUEUE) < number:
                assert time.monotonic() < deadline
                threading.Event().wait(0.01)
        stop.set()


def test_a_large_batch_puts_nothing_into_the_broker(bench: Bench, make_job: MakeJob) -> None:
    for _ in range(30):
        make_job(lane="bulk")
    for _ in range(3):
        bench.sweeper.sweep()
    assert (bench.depth("bulk"), bench.dispatcher.num_dispatched) == (0, 0)


def test_a_bulk_job_that_the_version_before_dispatched_can_be_claimed_and_no_message_is_sent(
    bench: Bench, database: Database, databases: dict[DatabaseRole, Database], make_job: MakeJob
) -> None:
    job = make_job(lane="bulk")
    with database.transaction() as connection:
        statement = text(
            """UPDATE jobs SET dispatch_number = nextval('dispatch_numbers'),
                      dispatched_at = clock_timestamp(),
                      next_dispatch_at = clock_timestamp() + interval '1 hour' WHERE id = :id"""
        )
        connection.execute(statement, {"id": job.id})

    def claim() -> list[str]:
        name, db = WorkerName("b", "w"), databases["worker"]
        found = jobs.claim_next(db, tiers=[bench.tier], worker=name, lease_seconds=30, limit=8)
        return [one.job.id for one in found]

    assert claim() == []
    bench.sweeper.sweep()
    assert claim() == [job.id]
    assert bench.dispatcher.num_dispatched == 0


def test_a_waiting_bell_is_not_doubled_by_age(bench: Bench, make_job: MakeJob) -> None:
    for _ in range(2):
        make_job(redispatch_seconds=0)
    for _ in range(5):
        bench.sweeper.sweep()
    assert bench.depth("interactive") == 2


def test_a_wiped_broker_is_noticed_and_every_bell_is_rung_again(bench: Bench, make_job: MakeJob) -> None:
    for _ in range(3):
        make_job(redispatch_seconds=0)
    bench.sweeper.sweep()
    assert bench.depth("interactive") == 3
    bench.wipe()
    bench.sweeper.sweep()
    assert bench.depth("interactive") == 3


def _fresh_sweeper(bench: Bench, database: Database) -> Sweeper:
    """One that has seen nothing before; a message counts as lost only by the broker's epoch."""
    return Sweeper(database, bench.broker, bench.dispatcher, [bench.tier], SweepPlan(redispatch_seconds=3600))


@pytest.mark.parametrize("loss", ["wiped", "restored from an old snapshot"])
def test_messages_lost_while_no_sweeper_ran_are_sent_again_by_the_next_one_once(
    bench: Bench, databases: dict[DatabaseRole, Database], make_job: MakeJob, loss: str
) -> None:
    for _ in range(3):
        make_job(redispatch_seconds=3600)
    bench.wipe()
    if loss != "wiped":  # the snapshot has the key of the start before
        bench.broker.remember_epoch("the run id of the start before")
    for _ in range(2):
        _fresh_sweeper(bench, databases["sweeper"]).sweep()
        assert bench.depth("interactive") == 3


def test_a_loss_that_could_not_be_recorded_is_recorded_at_the_next_turn(
    bench: Bench,
    databases: dict[DatabaseRole, Database],
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Postgres is away just when a sweeper that has seen no broker before finds the loss."""

    def away(_db: Database) -> int:
        raise Unavailable("it is away")

    make_job(redispatch_seconds=3600)
    bench.wipe()
    sweeper = _fresh_sweeper(bench, databases["sweeper"])
    with monkeypatch.context() as patch:
        patch.setattr(dispatches, "forget_all", away)
        sweeper.sweep()
    assert bench.depth("interactive") == 0
    sweeper.sweep()
    assert bench.depth("interactive") == 1


def test_of_two_sweepers_one_sends_lost_messages_again(
    bench: Bench, databases: dict[DatabaseRole, Database], make_job: MakeJob
) -> None:
    other = _fresh_sweeper(bench, databases["sweeper"])
    other.sweep()
    make_job(redispatch_seconds=3600)
    bench.wipe()
    for sweeper in (other, _fresh_sweeper(bench, databases["sweeper"]), other):
        sweeper.sweep()
        assert bench.depth("interactive") == 1


def test_a_bell_that_was_never_rung_is_rung_by_the_sweeper(bench: Bench, make_job: MakeJob) -> None:
    """The API died between its commit and its dispatch."""
    make_job(redispatch_seconds=0)
    assert bench.depth("interactive") == 0
    bench.sweeper.sweep()
    assert bench.depth("interactive") == 1


def test_every_account_has_its_turn_although_the_first_ones_have_new_jobs_all_the_time(
    migrated: Embedded,
    database: Database,
    databases: dict[DatabaseRole, Database],
    tier: str,
    make_job: MakeJob,
) -> None:
    """As when the broker is back, and the API could not dispatch for long."""
    owners = sorted(accounts.create_account(database, f"account {number}") for number in range(5))

    def make(owner: str) -> str:
        job = make_job(account_id=owner)
        dispatches.undispatch(database, job.id)
        return job.id

    bench = Bench(migrated, databases["sweeper"], tier, SweepPlan(max_dispatches=2))
    bench.sweeper.sweep()
    last = make(owners[-1])
    for _ in range(3):
        for owner in owners[:-1]:
            make(owner)
        bench.sweeper.sweep()
    assert dispatches.of_new_job(database, last) is not None
    assert bench.depth("interactive") == 3 * 2
    bench.redis.close()
    bench.broker.close()


def test_changes_of_counts_are_folded(bench: Bench, database: Database, make_job: MakeJob) -> None:
    make_job()
    bench.sweeper.sweep()
    with database.transaction() as connection:
        changes = text("SELECT count(*) FROM job_count_changes WHERE tier = :tier")
        assert connection.execute(changes, {"tier": bench.tier}).scalar_one() == 0


@pytest.mark.usefixtures("outbox")
def test_deliveries_of_a_receiver_that_answers_again_are_released_and_dispatched_in_one_turn(
    bench: Bench, database: Database, make_job: MakeJob
) -> None:
    job = make_job(webhook_url="https://hooks.example.com/")
    jobs.cancel(database, job.account_id, job.id)
    with database.transaction() as connection:
        hold = text("UPDATE webhook_deliveries SET held_at = clock_timestamp() WHERE job_id = :id")
        connection.execute(hold, {"id": job.id})
        recover = text(
            """INSERT INTO webhook_receivers (account_id, receiver, state, num_failures, last_failed_at,
                                              last_error_code)
               SELECT account_id, receiver, 'recovering', 0, clock_timestamp(), 'timeout'
                 FROM webhook_deliveries WHERE job_id = :id"""
        )
        connection.execute(recover, {"id": job.id})
    before = bench.broker.depth(CPU_QUEUE)
    bench.sweeper.sweep()
    assert bench.broker.depth(CPU_QUEUE) == before + 1


@pytest.mark.usefixtures("outbox")
def test_a_turn_that_finds_nothing_to_do_sends_two_statements(bench: Bench) -> None:
    bench.sweeper.sweep()
    sent: list[str] = []

    def watch(_driver: Any, query: str, _values: Any, _account: Any) -> None:
        sent.append(" ".join(query.split()))

    WATCHERS.append(watch)
    try:
        bench.sweeper.sweep()
    finally:
        WATCHERS.remove(watch)
    asked, newest = (query for query in sent if query not in ("BEGIN", "COMMIT"))
    assert "has_expired_leases" in asked
    assert newest.startswith("SELECT max(id) FROM job_events")


def test_if_it_cannot_be_read_what_is_due_every_part_runs(
    bench: Bench, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while somebody holds the lock of one table that is read for it."""
    make_job(redispatch_seconds=0)
    monkeypatch.setattr("storage.due_work._DUE_WORK", text("SELECT 1 / 0"))
    bench.sweeper.sweep()
    assert bench.depth("interactive") == 1
    assert bench.counted("calotype_sweep_failures_total", part="due_work") == 1
    assert all(asdict(all_work([bench.tier])).values())


def test_a_server_that_became_read_only_is_noticed_although_nothing_is_due(migrated: Embedded) -> None:
    """As after a failover, when the old primary still answers."""
    db = Database(migrated.database_urls["sweeper"], 1)
    with db.transaction() as connection:
        connection.execute(text("SET SESSION default_transaction_read_only = on"))
    with pytest.raises(Unavailable, match="25006"):
        due_work(db, [], webhook_keep_seconds=60, silent_seconds=600)
    assert not due_work(db, [], webhook_keep_seconds=60, silent_seconds=600).undispatched
    db.close()


def test_S40_sessions_whose_time_is_over_are_removed(bench: Bench, database: Database, account: str) -> None:
    key = accounts.create_key(database, account, "test")
    sessions.begin(database, key.id, seconds=-1)
    bench.sweeper.sweep()
    with database.transaction() as connection:
        query = text("SELECT count(*) FROM sessions WHERE key_id = :id")
        assert connection.execute(query, {"id": key.id}).scalar_one() == 0


def test_a_dead_broker_stops_neither_reaping_nor_expiry(
    database: Database, make_job: MakeJob, tier: str
) -> None:
    dead = "redis://:x@127.0.0.1:9/0"
    broker = Broker(dead, "x:")
    sweeper = Sweeper(database, broker, Dispatcher(make_celery(dead, "x:", [tier])), [tier], SweepPlan())
    job = make_job(deadline_seconds=0.0)
    sweeper.sweep()
    assert get(database, job.account_id, job.id).state is State.EXPIRED
    broker.close()


def test_a_bug_in_one_part_does_not_keep_the_others_from_healing(
    bench: Bench, database: Database, make_job: MakeJob
) -> None:
    class Broken(Broker):
        def epoch(self) -> tuple[str, bool]:
            raise ZeroDivisionError

    broker = Broken(bench.url, bench.prefix)
    make_job(redispatch_seconds=0)
    Sweeper(database, broker, bench.dispatcher, [bench.tier], SweepPlan()).sweep()
    assert bench.depth("interactive") == 1
    broker.close()


def test_S38_after_an_outage_the_sweeper_reaps_once_workers_could_renew_their_leases(
    bench: Bench, database: Database, databases: dict[DatabaseRole, Database], make_job: MakeJob
) -> None:
    class Away(Database):
        """Postgres, which does not answer while it is told not to."""

        is_away = False

        def run(self, *args: Any, **options: Any) -> Any:
            if self.is_away:
                raise Unavailable("it is away")
            return databases["sweeper"].run(*args, **options)

        def execute(self, *args: Any, **options: Any) -> Any:
            if self.is_away:
                raise Unavailable("it is away")
            return databases["sweeper"].execute(*args, **options)

        def transaction(self, *args: Any, **options: Any) -> Any:
            return databases["sweeper"].transaction(*args, **options)

    now = [100.0]
    job, db = make_job(), Away("postgresql://nobody@127.0.0.1:1/none", 1)
    plan = SweepPlan(heartbeat_seconds=5)
    sweeper = Sweeper(db, bench.broker, bench.dispatcher, [bench.tier], plan, clock=lambda: now[0])
    worker = jobs.WorkerName("b-" + bench.tier, "w")
    assert jobs.claim(database, job.id, tiers=[bench.tier], worker=worker, lease_seconds=0)
    db.is_away = True
    sweeper.sweep()
    db.is_away = False
    for seconds, state in ((0.0, State.RUNNING), (9.9, State.RUNNING), (10.0, State.QUEUED)):
        now[0] = 100 + seconds
        sweeper.sweep()
        assert get(database, job.account_id, job.id).state is state
    db.close()


def test_a_job_is_charged_for_a_process_that_is_silent_after_its_lease_ran_out(
    bench: Bench,
    database: Database,
    databases: dict[DatabaseRole, Database],
    make_job: MakeJob,
    tier: str,
) -> None:
    job = make_job()
    for boot_id in ("first", "silent"):
        name = WorkerName(f"{boot_id}-{tier}", boot_id)
        claimed = jobs.claim(databases["worker"], job.id, tiers=[tier], worker=name, lease_seconds=-1)
        assert claimed is not None
        if claimed.job.quarantined:
            assert set_isolated(databases["worker"], claimed.lease)
        bench.sweeper.sweep()
    assert get(database, job.account_id, job.id).num_crashes == 0
    with database.transaction() as connection:
        aged = "UPDATE possible_crashes SET lost_at = lost_at - interval '1 h' WHERE job_id = :id"
        connection.execute(text(aged), {"id": job.id})
    for _ in range(2):
        bench.sweeper.sweep()
    assert get(database, job.account_id, job.id).num_crashes == 1


def test_jobs_that_others_took_back_or_failed_are_counted(
    bench: Bench,
    database: Database,
    databases: dict[DatabaseRole, Database],
    make_job: MakeJob,
    tier: str,
) -> None:
    lost, failed = make_job(), make_job()
    name = WorkerName("b-dead", "w-dead")
    num_deaths = 0
    while get(database, lost.account_id, lost.id).state != "failed":
        claimed = jobs.claim(databases["worker"], lost.id, tiers=[tier], worker=name, lease_seconds=60)
        assert claimed is not None
        declare_dead(databases["worker"], boot_id="b-dead", on_device=[lost.id])
        num_deaths += 1
    claimed = jobs.claim(databases["worker"], failed.id, tiers=[tier], worker=name, lease_seconds=60)
    assert claimed is not None
    jobs.fail(databases["worker"], claimed.lease, code="numeric_error", detail="x", retryable=False)
    for _ in range(3):  # each is counted once
        bench.sweeper.sweep()
    assert bench.counted("calotype_jobs_reaped_total", state="queued") == num_deaths - 1
    assert bench.counted("calotype_jobs_reaped_total", state="failed") == 1
    assert bench.counted("calotype_jobs_failed_total", tier=tier, code="worker_lost") == 1
    assert bench.counted("calotype_jobs_failed_total", tier=tier, code="numeric_error") == 1
