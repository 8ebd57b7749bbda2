"""What nothing needs any more leaves the store, and is tried again while the store is away."""

import threading

import pytest
from sqlalchemy import text

from storage import erasure, jobs
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import BlobNotFound, BlobRefused, BlobUnavailable, NotFound
from storage.job_views import Job, StoredImage, get
from storage.jobs import WorkerName
from storage.objects import needless_objects
from storage.roles import DatabaseRole
from tasks.collectors import MAX_FAILURES, ErasureCollector
from tasks.generate import object_key
from tests.integration.tasks.conftest import MakeJob

Databases = dict[DatabaseRole, Database]


@pytest.fixture
def make_ended(database: Database, blobs: Blobs, tier: str, make_job: MakeJob) -> MakeJob:
    """Creates a job that has succeeded, with its image in the store."""

    def make(**changes: object) -> Job:
        job = make_job(**changes)
        worker = WorkerName("boot", "cpu:0@test")
        claim = jobs.claim(database, job.id, tiers=[tier], worker=worker, lease_seconds=30)
        assert claim is not None
        key = object_key(claim, 0)
        blobs.put(key, b"pixels", content_type="image/png", budget_seconds=10)
        stored = [StoredImage(0, 1, key, "0" * 64, 6, 16, 8)]
        assert jobs.finish(database, claim.lease, stored=stored, warnings=[], timings={})
        return get(database, job.account_id, job.id)

    return make


def is_there(blobs: Blobs, job: Job) -> bool:
    try:
        return bool(blobs.get(job.images[0].object_key))
    except BlobNotFound:
        return False


def test_the_objects_of_an_erased_job_and_of_deleted_images_are_deleted_and_no_others(
    databases: Databases, blobs: Blobs, make_ended: MakeJob
) -> None:
    erased, without_images, kept = make_ended(), make_ended(), make_ended()
    assert erasure.erase(databases["api"], erased.account_id, erased.id)
    assert erasure.delete_images(databases["api"], without_images.account_id, without_images.id)
    ErasureCollector(databases["sweeper"], blobs, {}).delete_objects(threading.Event())
    assert [is_there(blobs, job) for job in (erased, without_images, kept)] == [False, False, True]
    assert not needless_objects(databases["sweeper"])


def test_a_store_that_is_away_loses_no_object_from_sight(
    databases: Databases, blobs: Blobs, make_ended: MakeJob
) -> None:
    made = [make_ended() for _ in range(MAX_FAILURES + 1)]
    for job in made:
        assert erasure.erase(databases["api"], job.account_id, job.id)

    class Away:
        def delete(self, key: str) -> None:
            raise BlobUnavailable(f"{key}: it is down")

    with pytest.raises(BlobUnavailable):
        ErasureCollector(databases["sweeper"], Away(), {}).delete_objects(threading.Event())  # type: ignore[arg-type]  # what of it is used
    assert all(is_there(blobs, job) for job in made)
    ErasureCollector(databases["sweeper"], blobs, {}).delete_objects(threading.Event())
    assert not any(is_there(blobs, job) for job in made)


def test_an_object_that_the_store_does_not_delete_does_not_hold_up_the_others(
    databases: Databases, blobs: Blobs, make_ended: MakeJob
) -> None:
    refused, other = [make_ended() for _ in range(MAX_FAILURES)], make_ended()
    locked = {job.images[0].object_key for job in refused}
    for job in (*refused, other):
        assert erasure.erase(databases["api"], job.account_id, job.id)

    class Refusing:
        def delete(self, key: str) -> None:
            if key in locked:
                raise BlobRefused("it is locked", reason="AccessDenied")
            blobs.delete(key)

    collector = ErasureCollector(databases["sweeper"], Refusing(), {})  # type: ignore[arg-type]  # what of it is used
    with pytest.raises(BlobRefused):
        collector.delete_objects(threading.Event())
    collector.delete_objects(threading.Event())
    assert not is_there(blobs, other)
    assert all(is_there(blobs, job) for job in refused)
    ErasureCollector(databases["sweeper"], blobs, {}).delete_objects(threading.Event())
    assert not any(is_there(blobs, job) for job in refused)


def test_jobs_are_erased_once_they_are_older_than_their_lane_keeps_them(
    databases: Databases, database: Database, blobs: Blobs, make_ended: MakeJob
) -> None:
    old, bulk = make_ended(), make_ended(lane="bulk")
    with database.transaction() as connection:
        connection.execute(text("ALTER TABLE jobs DISABLE TRIGGER guard_job"))
        aged = text("UPDATE jobs SET finished_at = now() - interval '1 day' WHERE id = ANY(:ids)")
        connection.execute(aged, {"ids": [old.id, bulk.id]})
        connection.execute(text("ALTER TABLE jobs ENABLE TRIGGER guard_job"))
    counted: list[int] = []
    collector = ErasureCollector(
        databases["sweeper"], blobs, {"interactive": 3600.0}, on_erased=counted.append
    )
    collector.erase_old(threading.Event())
    assert sum(counted) >= 1
    with pytest.raises(NotFound):
        get(database, old.account_id, old.id)
    assert get(database, bulk.account_id, bulk.id).id == bulk.id
