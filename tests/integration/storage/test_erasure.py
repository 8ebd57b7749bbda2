"""What is erased is gone, with all that belongs to it and nothing else; an open job cannot be erased."""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from catalogue.accounting import Cost
from catalogue.states import State
from storage import accounts, batches, erasure, files, jobs, submissions
from storage.counts import fold
from storage.database import Database
from storage.errors import JobErased, NotFound
from storage.files import File, NewFile
from storage.job_views import Job, StoredImage, get
from storage.jobs import Claim
from storage.objects import needless_objects, orphans_among
from storage.roles import DatabaseRole
from storage.usage import UsageFilter, Used, usage
from tests.fixtures.new_jobs import new_job
from tests.integration.storage.conftest import MakeJob

Databases = dict[DatabaseRole, Database]
ClaimJob = Callable[..., Claim]


@pytest.fixture
def make_ended(database: Database, make_job: MakeJob, claim_job: ClaimJob) -> MakeJob:
    """Creates a job that has succeeded with two images."""

    def make(**changes: object) -> Job:
        job = make_job(**changes)
        claim = claim_job(job.id)
        stored = [
            StoredImage(number, 1, f"{job.account_id}/{job.id}/a1/{number}.png", "ab" * 32, 9, 64, 64)
            for number in range(2)
        ]
        assert jobs.finish(database, claim.lease, stored=stored, warnings=[], timings={})
        return get(database, job.account_id, job.id)

    return make


def rows_of(database: Database, job: Job) -> dict[str, int]:
    tables = dict.fromkeys(("images", "job_events", "webhook_deliveries", "job_files"), "job_id")
    counts = {}
    with database.transaction() as connection:
        for table, column in {"jobs": "id", **tables}.items():
            query = text(f"SELECT count(*) FROM {table} WHERE {column} = :id")
            counts[table] = connection.execute(query, {"id": job.id}).scalar_one()
    return counts


def keys_of(job: Job) -> set[str]:
    return {image.object_key for image in job.images}


def test_an_erased_job_is_gone_with_all_its_rows_and_its_objects_are_needless(
    databases: Databases, database: Database, make_ended: MakeJob
) -> None:
    job, other = make_ended(webhook_url="https://example.org/hook"), make_ended()
    assert rows_of(database, job)["webhook_deliveries"] == 1
    assert erasure.erase(databases["api"], job.account_id, job.id)
    assert set(rows_of(database, job).values()) == {0}
    with pytest.raises(NotFound):
        get(databases["api"], job.account_id, job.id)
    assert keys_of(job) <= {one.key for one in needless_objects(databases["sweeper"])}
    assert get(databases["api"], other.account_id, other.id) == other
    assert not erasure.erase(databases["api"], job.account_id, job.id), "it is gone"


def test_a_job_that_has_not_ended_is_not_erased_by_anybody(
    databases: Databases, database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    queued, running = make_job(), make_job()
    claim_job(running.id)
    for job in (queued, running):
        assert not erasure.erase(databases["api"], job.account_id, job.id)
        assert not erasure.delete_images(databases["api"], job.account_id, job.id)
        with pytest.raises(IntegrityError, match="cannot be deleted"), database.transaction() as connection:
            connection.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": job.id})
        assert get(database, job.account_id, job.id).id == job.id


def test_another_accounts_job_is_neither_erased_nor_robbed_of_its_images(
    databases: Databases, database: Database, make_ended: MakeJob
) -> None:
    job, stranger = make_ended(), accounts.create_account(database, "stranger")
    assert not erasure.erase(databases["api"], stranger, job.id)
    assert not erasure.delete_images(databases["api"], stranger, job.id)
    assert get(database, job.account_id, job.id) == job


def test_deleted_images_say_so_and_their_objects_are_needless(
    databases: Databases, database: Database, make_ended: MakeJob
) -> None:
    job = make_ended()
    assert erasure.delete_images(databases["api"], job.account_id, job.id)
    first = [image.deleted_at for image in get(database, job.account_id, job.id).images]
    assert len(first) == 2
    assert None not in first
    assert keys_of(job) <= {one.key for one in needless_objects(databases["sweeper"])}
    assert erasure.delete_images(databases["api"], job.account_id, job.id), "it may be repeated"
    assert [image.deleted_at for image in get(database, job.account_id, job.id).images] == first


def test_a_stored_image_does_not_change(database: Database, make_ended: MakeJob) -> None:
    job = make_ended()
    assert erasure.delete_images(database, job.account_id, job.id)
    for change in ("sha256 = 'x'", "deleted_at = NULL", "deleted_at = now()", "missing_at = now(), seed = 7"):
        with pytest.raises(IntegrityError, match="does not change"), database.transaction() as connection:
            connection.execute(text(f"UPDATE images SET {change} WHERE job_id = :id"), {"id": job.id})


def test_the_idempotency_key_of_an_erased_job_creates_no_other(
    databases: Databases, make_ended: MakeJob, account: str
) -> None:
    job = make_ended(idempotency_key="once", request_hash="same")
    assert erasure.erase(databases["api"], account, job.id)
    again = new_job(account, idempotency_key="once", request_hash="same")
    with pytest.raises(JobErased, match="was erased at"):
        submissions.create(databases["api"], again, redispatch_seconds=15)
    with pytest.raises(JobErased):
        submissions.made_before(databases["api"], account, "once", "same")
    other = new_job(account, idempotency_key="another", request_hash="same")
    assert submissions.create(databases["api"], other, redispatch_seconds=15).is_new


def test_another_account_may_use_the_same_key(
    databases: Databases, database: Database, make_ended: MakeJob, account: str
) -> None:
    job = make_ended(idempotency_key="shared", request_hash="same")
    assert erasure.erase(databases["api"], account, job.id)
    stranger = accounts.create_account(database, "stranger")
    theirs = new_job(stranger, idempotency_key="shared", request_hash="same")
    assert submissions.create(databases["api"], theirs, redispatch_seconds=15).is_new


@pytest.fixture
def make_file(databases: Databases, account: str) -> Callable[[], File]:
    """A ready file of the account."""

    def make() -> File:
        file_id = files.id_of(secrets.token_bytes(8))
        new = NewFile(account, file_id, "image/png", 8, files.new_key(account, file_id), 1, 1)
        return files.record(databases["api"], new, keep_seconds=3600)[0]

    return make


def test_an_input_file_goes_with_the_last_job_that_names_it(
    databases: Databases, make_ended: MakeJob, make_file: Callable[[], File], account: str
) -> None:
    shared, own = make_file(), make_file()
    job = make_ended(image=(own.id,), mask_image=shared.id)
    other = make_ended(image=(shared.id,))
    assert erasure.erase(databases["api"], account, job.id)
    assert set(files.found(databases["api"], account, [shared.id, own.id])) == {shared.id}
    assert erasure.erase(databases["api"], account, other.id)
    assert not files.found(databases["api"], account, [shared.id])


def test_an_object_that_a_worker_stores_for_an_erased_job_is_an_orphan(
    databases: Databases, make_ended: MakeJob
) -> None:
    job = make_ended()
    late = (f"{job.account_id}/{job.id}/a1/0-late", job.account_id, job.id, 1)
    unknown = ("acc_x/job_x/a1/0-late", "acc_x", "job_x", 1)
    assert erasure.erase(databases["api"], job.account_id, job.id)
    assert orphans_among(databases["sweeper"], [late, unknown]) == [late[0]]


def used_by(database: Database, account: str) -> Used:
    today = datetime.now(UTC).date()
    asked = UsageFilter(today - timedelta(days=1), today + timedelta(days=1))
    return usage(database, account, ("batch_id",), asked, currency="USD", limit=10)[1]


def test_usage_and_the_counts_of_a_batch_stay(
    databases: Databases, database: Database, account: str, claim_job: ClaimJob
) -> None:
    rows = [new_job(account, lane="bulk", batch_line=line) for line in (2, 3)]
    made, _ = batches.create(database, account, "a.csv", rows)
    first, second = [job.id for job in batches.jobs_of(database, account, made.id)]
    for job_id in (first, second):
        claim = claim_job(job_id)
        seconds = {"device_seconds": 2.0}
        assert jobs.finish(
            database, claim.lease, stored=[], warnings=[], timings=seconds, cost=Cost(Decimal("1.5"), "USD")
        )
    before = batches.get(database, account, made.id)
    used = used_by(databases["api"], account)
    assert erasure.erase(databases["api"], account, first)
    fold(databases["sweeper"])
    after = batches.get(database, account, made.id)
    assert after.counts == before.counts == {State.SUCCEEDED: 2}
    assert [job.id for job in batches.jobs_of(database, account, made.id)] == [second]
    assert used_by(databases["api"], account) == used
    assert used.num_jobs == 2


def test_old_jobs_of_a_lane_are_erased_and_no_others(
    databases: Databases, database: Database, make_ended: MakeJob, make_job: MakeJob
) -> None:
    old, bulk, new = make_ended(), make_ended(lane="bulk"), make_ended()
    queued = make_job()
    with database.transaction() as connection:
        connection.execute(text("ALTER TABLE jobs DISABLE TRIGGER guard_job"))
        connection.execute(
            text("UPDATE jobs SET finished_at = now() - interval '1 day' WHERE id = ANY(:ids)"),
            {"ids": [old.id, bulk.id]},
        )
        connection.execute(text("ALTER TABLE jobs ENABLE TRIGGER guard_job"))
    while erasure.erase_old(databases["sweeper"], "interactive", kept_seconds=3600, limit=1):
        pass
    with pytest.raises(NotFound):
        get(database, old.account_id, old.id)
    for job in (bulk, new, queued):
        assert get(database, job.account_id, job.id).id == job.id
