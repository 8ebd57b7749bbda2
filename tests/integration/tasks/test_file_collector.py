"""Unused files are gone after their time, used ones never, and no object of a file is an orphan."""

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import text

from storage import files, jobs
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import BlobNotFound, BlobUnavailable
from storage.files import File, NewFile
from storage.roles import DatabaseRole
from tasks.collectors import CollectionPlan, FileCollector, OrphanCollector
from tests.integration.tasks.conftest import MakeJob

NOW = CollectionPlan(orphan_seconds=-60)
MakeFile = Callable[[bytes], File]


@pytest.fixture
def make_file(databases: dict[DatabaseRole, Database], blobs: Blobs, account: str) -> MakeFile:
    """A file with its object."""

    def make(data: bytes) -> File:
        file_id = files.id_of(data)
        key = files.new_key(account, file_id)
        blobs.put(key, data, content_type="image/png", budget_seconds=10)
        new = NewFile(account, file_id, "image/png", len(data), key, 1, 1)
        return files.record(databases["api"], new, keep_seconds=3600)[0]

    return make


@pytest.fixture
def collector(databases: dict[DatabaseRole, Database], blobs: Blobs) -> FileCollector:
    return FileCollector(databases["sweeper"], blobs)


def let_its_time_pass(database: Database, file: File) -> None:
    statement = text("UPDATE files SET expires_at = now() - interval '1 second' WHERE object_key = :key")
    with database.transaction() as connection:
        connection.execute(statement, {"key": file.object_key})


def is_there(blobs: Blobs, key: str) -> bool:
    try:
        return bool(blobs.get(key))
    except BlobNotFound:
        return False


def test_an_unused_file_is_gone_after_its_time_and_a_used_one_never_is(
    databases: dict[DatabaseRole, Database],
    database: Database,
    blobs: Blobs,
    account: str,
    make_job: MakeJob,
    make_file: MakeFile,
    collector: FileCollector,
) -> None:
    young, unused, used = make_file(b"young"), make_file(b"unused"), make_file(b"used")
    job = make_job()
    databases["api"].run(
        lambda connection: files.link(connection, account, [(job.id, [used.id])]), account_id=account
    )
    jobs.cancel(database, account, job.id)  # its job has ended: it can be tried again
    for file in (unused, used):
        let_its_time_pass(database, file)
    collector.collect()
    assert [is_there(blobs, file.object_key) for file in (young, unused, used)] == [True, False, True]
    found = files.found(databases["api"], account, [young.id, unused.id, used.id])
    assert found.keys() == {young.id, used.id}


def test_the_object_of_a_deleted_file_is_removed_and_the_one_that_came_after_it_stays(
    databases: dict[DatabaseRole, Database],
    blobs: Blobs,
    account: str,
    make_file: MakeFile,
    collector: FileCollector,
) -> None:
    file = make_file(b"again")
    files.delete(databases["api"], account, file.id)
    again = make_file(b"again")
    other = make_file(b"other")
    files.delete(databases["api"], account, other.id)
    collector.collect()
    assert is_there(blobs, again.object_key)
    assert not is_there(blobs, other.object_key)


def test_a_store_that_is_away_loses_no_file_from_sight(
    databases: dict[DatabaseRole, Database], blobs: Blobs, account: str, make_file: MakeFile
) -> None:
    file = make_file(b"kept in sight")
    files.delete(databases["api"], account, file.id)

    class Away:
        def delete(self, key: str) -> None:
            raise BlobUnavailable(f"{key}: it is down")

    with pytest.raises(BlobUnavailable):
        FileCollector(databases["sweeper"], Away()).collect()  # type: ignore[arg-type]  # what of it is used
    assert file.object_key in files.deleted_keys(databases["sweeper"])
    FileCollector(databases["sweeper"], blobs).collect()
    assert not is_there(blobs, file.object_key)


def test_a_collector_that_is_told_to_stop_stops(
    databases: dict[DatabaseRole, Database], blobs: Blobs, account: str, make_file: MakeFile
) -> None:
    file = make_file(b"stop")
    files.delete(databases["api"], account, file.id)
    stop = threading.Event()
    stop.set()
    FileCollector(databases["sweeper"], blobs).collect(stop)
    assert is_there(blobs, file.object_key)
    FileCollector(databases["sweeper"], blobs).run(stop)  # returns


def test_S42_objects_of_files_are_no_orphans_and_those_of_uploads_without_a_row_are(
    databases: dict[DatabaseRole, Database],
    blobs: Blobs,
    account: str,
    make_file: MakeFile,
) -> None:
    ready = make_file(b"ready")
    coming = files.begin_upload(
        databases["api"],
        NewFile(account, files.id_of(b"c"), "image/png", 1, files.new_key(account, files.id_of(b"c"))),
        keep_seconds=60,
    )
    lost = files.new_key(account, ready.id)  # as an upload that was slower than another of the same bytes
    nobodys = files.new_key(f"acc_{'0' * 26}", ready.id)  # of another installation
    foreign = f"{account}/files/notes.png"
    for key in (coming.object_key, lost, nobodys, foreign):
        blobs.put(key, b"c", content_type="image/png", budget_seconds=10)
    partial_forward = OrphanCollector(databases["sweeper"], blobs, CollectionPlan(orphan_seconds=3600))
    while partial_forward.collect_page():
        pass
    assert is_there(blobs, lost), "too young"
    partial_forward = OrphanCollector(databases["sweeper"], blobs, NOW)
    while partial_forward.collect_page():
        pass
    kept = (ready.object_key, coming.object_key, nobodys, foreign)
    assert [is_there(blobs, key) for key in kept] == [True] * 4
    assert not is_there(blobs, lost)
    for key in (nobodys, foreign):
        blobs.delete(key)
