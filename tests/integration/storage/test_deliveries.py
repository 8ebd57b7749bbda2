"""The promises of the outbox: batches tell their end once, and no account fills the broker."""

import threading
from collections.abc import Callable
from functools import partial

import pytest
from sqlalchemy import Connection, text

from storage import accounts, batches, deliveries, jobs
from storage.batches import Batch
from storage.database import Database
from storage.delivery_turns import MAX_RECEIVERS
from storage.delivery_views import list_deliveries
from storage.errors import DeliveryIsPending, NotFound
from storage.job_views import StoredImage, list_jobs
from storage.jobs import Claim
from storage.submissions import create
from tests.fixtures.new_jobs import new_job

from .conftest import MakeJob

URL = "https://hooks.example.com/"
ROUNDS = 12

pytestmark = pytest.mark.usefixtures("outbox")


def make_batch(database: Database, account: str, num_jobs: int, webhook_url: str | None = URL) -> Batch:
    rows = [new_job(account, lane="bulk", batch_line=line) for line in range(2, num_jobs + 2)]
    return batches.create(database, account, "a.csv", rows, webhook_url=webhook_url)[0]


def events(database: Database, batch: Batch) -> list[str]:
    return [each.event for each in list_deliveries(database, batch.account_id, batch_id=batch.id)]


def together(calls: list[Callable[[], object]]) -> None:
    start = threading.Barrier(len(calls))
    failures: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            start.wait(30)
            call()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_a_batch_tells_its_end_when_its_last_job_ends_and_not_before(
    database: Database, account: str, claim_job: Callable[..., Claim]
) -> None:
    batch = make_batch(database, account, 3)
    first, second, third = (job.id for job in list_jobs(database, account, batch_id=batch.id))
    jobs.cancel(database, account, first)
    lease = claim_job(second).lease
    image = StoredImage(0, 1, f"deliveries/{second}.png", "0" * 64, 10, 128, 128)
    assert jobs.finish(database, lease, stored=[image], warnings=[], timings={})
    assert events(database, batch) == []
    lease = claim_job(third).lease
    assert jobs.fail(database, lease, code="numeric_error", detail="NaN", retryable=False) == "failed"
    assert events(database, batch) == ["batch.completed"]


def test_a_batch_that_asks_for_nothing_gets_nothing(database: Database, account: str) -> None:
    batch = make_batch(database, account, 2, webhook_url=None)
    batches.cancel(database, account, batch.id)
    assert events(database, batch) == []


def test_a_canceled_and_an_expired_batch_tell_their_end_once(database: Database, account: str) -> None:
    canceled = make_batch(database, account, 5)
    batches.cancel(database, account, canceled.id)
    assert events(database, canceled) == ["batch.completed"]
    rows = [new_job(account, lane="bulk", batch_line=2, deadline_seconds=0.001)]
    expired, _ = batches.create(database, account, "a.csv", rows, webhook_url=URL)
    while batches.get(database, account, expired.id).state == "running":
        jobs.expire(database)
    assert events(database, expired) == ["batch.completed"]


def test_jobs_that_end_at_the_same_time_complete_their_batch_once(
    database: Database, account: str, claim_job: Callable[..., Claim]
) -> None:
    for _ in range(ROUNDS):
        batch = make_batch(database, account, 6)
        leases = [claim_job(job.id).lease for job in list_jobs(database, account, batch_id=batch.id)]
        end = partial(jobs.fail, database, code="numeric_error", detail="NaN", retryable=False)
        together([partial(end, lease) for lease in leases])
        assert events(database, batch) == ["batch.completed"]


def test_the_second_of_two_last_jobs_waits_for_the_first_and_completes_the_batch(
    database: Database, account: str
) -> None:
    # Two transactions that each would see the other's job as unfinished: the lock orders them.
    batch = make_batch(database, account, 2)
    first, second = (job.id for job in list_jobs(database, account, batch_id=batch.id))
    canceling = threading.Thread(target=jobs.cancel, args=(database, account, second))
    end = text(
        """UPDATE jobs SET state = 'canceled', finished_at = clock_timestamp(), next_dispatch_at = NULL,
                  dispatch_number = NULL WHERE id = :id"""
    )
    with database.transaction() as connection:
        connection.execute(end, {"id": first})
        deliveries.complete_batches(connection, {batch.id})
        canceling.start()
        wait_until_blocked_by(connection, database)
    canceling.join(60)
    assert events(database, batch) == ["batch.completed"]


def wait_until_blocked_by(holder: Connection, database: Database) -> None:
    mine = holder.execute(text("SELECT pg_backend_pid()")).scalar_one()
    query = text("SELECT count(*) FROM pg_stat_activity WHERE :mine = ANY(pg_blocking_pids(pid))")
    for _ in range(3000):
        with database.transaction() as connection:
            if connection.execute(query, {"mine": mine}).scalar_one():
                return
            connection.execute(text("SELECT pg_sleep(0.02)"))
    raise AssertionError("nobody waits for the batch")


def test_a_batch_that_is_canceled_while_its_jobs_end_tells_it_once(
    database: Database, account: str, claim_job: Callable[..., Claim]
) -> None:
    for _ in range(ROUNDS):
        batch = make_batch(database, account, 4)
        leases = [claim_job(job.id).lease for job in list_jobs(database, account, batch_id=batch.id)[:2]]
        end = partial(jobs.fail, database, code="numeric_error", detail="NaN", retryable=False)
        together(
            [partial(batches.cancel, database, account, batch.id), *(partial(end, lease) for lease in leases)]
        )
        assert events(database, batch) == ["batch.completed"]


def test_a_receiver_that_is_down_gets_a_few_bells_and_others_take_turns(
    database: Database, account: str, make_job: MakeJob
) -> None:
    other = accounts.create_account(database, "other")
    for _ in range(20):
        jobs.cancel(database, account, make_job(webhook_url=URL).id)
    mine, *_ = create(database, new_job(other, webhook_url=URL), redispatch_seconds=15)
    jobs.cancel(database, other, mine.id)
    dispatched = deliveries.dispatch(database, limit=2, max_per_account=4, redispatch_seconds=60)
    (theirs,) = list_deliveries(database, other)
    assert len(dispatched) == 2
    assert theirs.id in dispatched
    assert len(deliveries.dispatch(database, limit=100, max_per_account=4, redispatch_seconds=60)) == 3
    assert deliveries.dispatch(database, limit=100, max_per_account=4, redispatch_seconds=60) == []
    # What is being sent counts, too; a message that no worker received is sent again.
    for _ in range(4):
        assert deliveries.claim(database, max_per_account=4, lease_seconds=60) is not None
    assert deliveries.dispatch(database, limit=100, max_per_account=4, redispatch_seconds=0.001) != []
    deliveries.undispatch(database, dispatched)


def test_no_account_has_more_attempts_under_way_than_allowed(
    database: Database, account: str, make_job: MakeJob
) -> None:
    for _ in range(8):
        jobs.cancel(database, account, make_job(webhook_url=URL).id)
    claimed = []
    together([lambda: claimed.append(deliveries.claim(database, max_per_account=3, lease_seconds=60))] * 8)
    assert len([each for each in claimed if each is not None]) == 3
    assert len({each.id for each in claimed if each is not None}) == 3


def test_a_receiver_with_a_long_queue_lets_the_others_of_its_account_go_first(
    database: Database, account: str, make_job: MakeJob
) -> None:
    stuck, well, port = (
        "https://stuck.example.com/",
        "https://WELL.example.com/a?b",
        "https://well.example.com:8443",
    )
    for url in (*[stuck] * 10, well, well, port):
        jobs.cancel(database, account, make_job(webhook_url=url).id)
    urls = []
    for _ in range(6):
        claimed = deliveries.claim(database, max_per_account=6, lease_seconds=60)
        assert claimed is not None
        urls.append(claimed.url)
    assert urls == [stuck, well, port, stuck, well, stuck]


def test_a_dispatched_delivery_is_claimed_by_its_id_if_its_receiver_has_nothing_under_way(
    database: Database, account: str, make_job: MakeJob
) -> None:
    limits = {"max_per_account": 2, "lease_seconds": 60}
    hosts: dict[str, list[str]] = {}
    for name in ("a", "a", "b", "c"):
        job = make_job(webhook_url=f"https://{name}.example.com/")
        jobs.cancel(database, account, job.id)
        (delivery,) = list_deliveries(database, account, job_id=job.id)
        hosts.setdefault(name, []).append(delivery.id)
    first, second = hosts["a"]
    claimed = deliveries.claim_this(database, second, **limits)
    assert claimed is not None
    assert (claimed.id, claimed.num_attempts, claimed.webhook_secret != "") == (second, 1, True)
    assert deliveries.claim_this(database, second, **limits) is None, "it is under way"
    assert deliveries.claim_this(database, first, **limits) is None, "its receiver has an attempt under way"
    assert deliveries.claim_this(database, hosts["b"][0], **limits) is not None
    assert deliveries.claim_this(database, hosts["c"][0], **limits) is None, "the account has two under way"
    assert deliveries.claim_this(database, "whd_forged", **limits) is None


@pytest.mark.parametrize(
    ("url", "receiver"),
    [
        ("HTTPS://Example.com/a", "example.com"),
        ("https://example.com:443?b", "example.com"),
        ("https://example.com.:443", "example.com"),
        ("https://example.com:8443/", "example.com:8443"),
        ("https://[2606:4700::1111]/", "[2606:4700::1111]"),
    ],
)
def test_a_receiver_is_the_same_however_its_url_is_written(
    database: Database, make_job: MakeJob, url: str, receiver: str
) -> None:
    job = make_job(webhook_url=url)
    jobs.cancel(database, job.account_id, job.id)
    query = text("SELECT receiver FROM webhook_deliveries WHERE job_id = :id")
    with database.transaction() as connection:
        assert connection.execute(query, {"id": job.id}).scalar_one() == receiver


def test_receivers_without_number_are_all_served(database: Database, account: str, make_job: MakeJob) -> None:
    num = MAX_RECEIVERS + 5
    for number in range(num):
        url = f"https://host{num - number:04}.example.com/"
        jobs.cancel(database, account, make_job(webhook_url=url).id)
    claimed = []
    while one := deliveries.claim(database, max_per_account=num, lease_seconds=60):
        claimed.append(one.url)
    assert len(set(claimed)) == num
    assert claimed[0].startswith(f"https://host{num:04}."), "the oldest, though it is the last by name"


def test_only_what_has_ended_and_is_ones_own_is_replayed(
    database: Database, account: str, make_job: MakeJob
) -> None:
    jobs.cancel(database, account, make_job(webhook_url=URL).id)
    (delivery,) = list_deliveries(database, account)
    with pytest.raises(DeliveryIsPending):
        deliveries.replay(database, account, delivery.id)
    claimed = deliveries.claim(database, max_per_account=4, lease_seconds=60)
    assert claimed is not None
    recorded = deliveries.record(database, claimed, deliveries.AttemptRecord(1, 200), retry_seconds=1)
    assert recorded == deliveries.Recorded("delivered", None)
    stranger = accounts.create_account(database, "stranger")
    with pytest.raises(NotFound):
        deliveries.replay(database, stranger, delivery.id)
    deliveries.replay(database, account, delivery.id)
    assert [each.state for each in list_deliveries(database, account)] == ["pending"]
