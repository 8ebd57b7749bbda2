"""Claims and finishes of several jobs in one statement, and what their commits notify."""

import select
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import psycopg2
import pytest
from sqlalchemy import text

from local.endpoints import Embedded
from storage import batches, jobs
from storage.accounts import create_account
from storage.database import Database
from storage.job_views import StoredImage, get
from storage.jobs import Claim, Finished
from storage.notifications import BULK_DUE, JOBS_ENDED, WEBHOOKS_DUE
from storage.roles import DatabaseRole
from tests.fixtures.new_jobs import new_job
from tests.integration.storage.conftest import WORKER, MakeJob


def claim_next(database: Database, tier: str, limit: int, after_account: str = "") -> list[Claim]:
    return jobs.claim_next(
        database, tiers=[tier], worker=WORKER, lease_seconds=30, limit=limit, after_account=after_account
    )


def image_of(claim: Claim) -> StoredImage:
    return StoredImage(0, 1, f"{claim.job.id}/0.png", "0" * 64, 10, 64, 64)


def finished(claim: Claim) -> Finished:
    return Finished(claim.lease, [image_of(claim)], [], {"device_seconds": 1.5}, claim.completes_batch)


@pytest.fixture
def tier(account: str) -> str:
    """A tier that no other test uses."""
    return f"tier-{account[-8:]}"


@pytest.fixture
def worker_database(databases: dict[DatabaseRole, Database]) -> Database:
    """A pool with the rights of a worker."""
    return databases["worker"]


@pytest.fixture
def messages(migrated: Embedded) -> Iterator["Messages"]:
    """What is notified during the test."""
    heard = Messages(migrated.database_urls["worker"])
    yield heard
    heard.close()


class Messages:
    """The notifications of all channels that were committed since it was made."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True
        with self._connection.cursor() as cursor:
            for channel in (JOBS_ENDED, WEBHOOKS_DUE, BULK_DUE):
                cursor.execute(f"LISTEN {channel}")

    def read(self, channel: str, seconds: float = 5) -> list[str]:
        """The payloads on this channel; waits until there is one."""
        found: list[str] = []
        while not found and select.select([self._connection], [], [], seconds)[0]:
            self._connection.poll()
            found = [message.payload for message in self._connection.notifies if message.channel == channel]
        return found

    def close(self) -> None:
        self._connection.close()


def test_bulk_jobs_are_claimed_accounts_in_turn_and_oldest_first(
    database: Database, make_job: MakeJob, tier: str, worker_database: Database
) -> None:
    many = [make_job(lane="bulk", tier=tier).id for _ in range(5)]
    other = create_account(database, "another")
    few = [make_job(lane="bulk", tier=tier, account_id=other).id for _ in range(2)]

    claimed = {claim.job.id for claim in claim_next(worker_database, tier, 4)}

    assert claimed == {*many[:2], *few}


def test_no_more_bulk_jobs_are_claimed_than_there_is_room_for(
    database: Database, make_job: MakeJob, tier: str, worker_database: Database
) -> None:
    for number in range(3):
        owner = create_account(database, f"account {number}")
        for _ in range(3):
            make_job(lane="bulk", tier=tier, account_id=owner)

    assert [len(claim_next(worker_database, tier, 4)) for _ in range(4)] == [4, 4, 1, 0]


def test_turns_begin_behind_the_account_that_was_served_last(
    database: Database, make_job: MakeJob, tier: str, worker_database: Database
) -> None:
    accounts = sorted(create_account(database, f"account {number}") for number in range(3))
    for owner in accounts:
        for _ in range(2):
            make_job(lane="bulk", tier=tier, account_id=owner)

    served: list[str] = [""]
    for _ in range(6):
        (claim,) = claim_next(worker_database, tier, 1, after_account=served[-1])
        served.append(claim.job.account_id)

    assert served[1:] == accounts * 2
    assert all(one != other for one, other in pairwise(served))


def test_only_due_bulk_jobs_of_the_tiers_are_claimed(
    database: Database, account: str, make_job: MakeJob, tier: str, worker_database: Database
) -> None:
    make_job(lane="interactive", tier=tier)
    make_job(lane="bulk", tier="sd")
    canceled = make_job(lane="bulk", tier=tier)
    jobs.cancel(database, account, canceled.id)
    waiting = make_job(lane="bulk", tier=tier)
    (claim,) = claim_next(worker_database, tier, 5)
    jobs.release(
        database,
        claim.lease,
        code="internal_error",
        detail="",
        charged=True,
        max_attempts=5,
        backoff_seconds=60,
    )

    assert claim.job.id == waiting.id
    assert claim_next(worker_database, tier, 5) == []


def test_an_account_whose_jobs_wait_for_a_retry_takes_no_turn(
    database: Database, worker_database: Database, make_job: MakeJob, tier: str
) -> None:
    first, second = sorted(create_account(database, f"account {number}") for number in range(2))
    make_job(lane="bulk", tier=tier, account_id=first)
    (claim,) = claim_next(worker_database, tier, 1)
    jobs.release(
        worker_database,
        claim.lease,
        code="internal_error",
        detail="",
        charged=True,
        max_attempts=5,
        backoff_seconds=60,
    )
    for _ in range(3):
        make_job(lane="bulk", tier=tier, account_id=second)

    served = [claim_next(worker_database, tier, 1, after_account=second) for _ in range(3)]
    assert [len(claims) for claims in served] == [1, 1, 1]


def test_jobs_that_are_released_together_are_queued_again_and_a_lost_lease_releases_nothing(
    database: Database, account: str, make_job: MakeJob, tier: str, worker_database: Database
) -> None:
    for _ in range(4):
        make_job(lane="bulk", tier=tier)
    first, canceled, ended, lost = claim_next(worker_database, tier, 4)
    jobs.cancel(database, account, canceled.job.id)
    jobs.finish(worker_database, ended.lease, stored=[], warnings=[], timings={})
    forged = replace(lost.lease, token=first.lease.token)

    released = jobs.release_each(
        worker_database,
        [first.lease, canceled.lease, ended.lease, forged],
        code="drained",
        detail="",
        charged=False,
        max_attempts=5,
        backoff_seconds=0,
    )

    assert released == {first.job.id: "queued", canceled.job.id: "canceled"}
    claims = (first, canceled, ended, lost)
    found = [get(database, account, claim.job.id) for claim in claims]
    assert [job.state for job in found] == ["queued", "canceled", "succeeded", "running"]
    assert [job.num_failures for job in found] == [0, 0, 0, 0]
    assert [claim.job.id for claim in claim_next(worker_database, tier, 4)] == [first.job.id]


def test_two_jobs_that_end_together_are_finished_with_their_own_images(
    database: Database, account: str, make_job: MakeJob, tier: str, worker_database: Database
) -> None:
    for _ in range(2):
        make_job(lane="bulk", tier=tier)
    first, second = claim_next(worker_database, tier, 2)
    jobs.release(
        worker_database,
        second.lease,
        code="drained",
        detail="",
        charged=False,
        max_attempts=5,
        backoff_seconds=0,
    )

    assert jobs.finish_each(worker_database, [finished(first), finished(second)]) == {first.job.id}
    ended, requeued = get(database, account, first.job.id), get(database, account, second.job.id)
    assert (ended.state, ended.images, ended.timings) == (
        "succeeded",
        (image_of(first),),
        {"device_seconds": 1.5},
    )
    assert (requeued.state, requeued.images) == ("queued", ())


def test_all_jobs_that_end_in_one_statement_are_in_one_notification(
    make_job: MakeJob, tier: str, messages: Messages, worker_database: Database
) -> None:
    for _ in range(3):
        make_job(lane="bulk", tier=tier)
    claimed = claim_next(worker_database, tier, 3)
    jobs.finish_each(worker_database, [finished(claim) for claim in claimed])

    (payload,) = messages.read(JOBS_ENDED)
    assert set(payload.split()) == {claim.job.id for claim in claimed}


def test_more_ends_than_fit_into_one_notification_are_all_told(
    database: Database, account: str, tier: str, messages: Messages
) -> None:
    rows = [new_job(account, lane="bulk", tier=tier, batch_line=line) for line in range(2, 503)]
    batch, _ = batches.create(database, account, "many.csv", rows)
    batches.cancel(database, account, batch.id)

    told: list[str] = []
    while len(told) < len(rows):
        payloads = messages.read(JOBS_ENDED)
        assert payloads, f"{len(told)} of {len(rows)} jobs were told"
        told = [job_id for payload in payloads for job_id in payload.split()]
    assert len(set(told)) == len(rows)


def test_new_bulk_jobs_notify_workers_of_their_tier(make_job: MakeJob, tier: str, messages: Messages) -> None:
    make_job(lane="interactive", tier=tier)
    make_job(lane="bulk", tier=tier)

    assert messages.read(BULK_DUE) == [tier]


def test_an_end_with_a_webhook_notifies_those_who_send_it(
    make_job: MakeJob, tier: str, messages: Messages, worker_database: Database
) -> None:
    make_job(lane="bulk", tier=tier, webhook_url="https://receiver.example/hook")
    (claim,) = claim_next(worker_database, tier, 1)
    jobs.finish_each(worker_database, [finished(claim)])

    assert messages.read(WEBHOOKS_DUE) == [""]


def test_the_last_job_of_a_batch_with_a_webhook_completes_it_in_its_own_transaction(
    database: Database, account: str, tier: str, worker_database: Database
) -> None:
    rows = [new_job(account, lane="bulk", tier=tier, batch_line=line) for line in (2, 3)]
    batches.create(database, account, "two.csv", rows, webhook_url="https://receiver.example/hook")
    claimed = claim_next(worker_database, tier, 2)

    assert all(claim.completes_batch for claim in claimed)
    jobs.finish_each(worker_database, [finished(claim) for claim in claimed])
    assert num_completed(database, account) == 1


def num_completed(database: Database, account: str) -> int:
    query = text(
        "SELECT count(*) FROM webhook_deliveries WHERE account_id = :id AND event = 'batch.completed'"
    )
    return int(database.execute(query, {"id": account})[0][0])
