"""The promises about files as rows: whose they are, how long they stay, and who waits for whom."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, text

from local.endpoints import Embedded
from storage import accounts, files, jobs
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import BlobDamaged, FileGone, FileInUse, NotFound
from storage.files import File, NewFile
from storage.job_views import Job
from storage.roles import DatabaseRole
from tests.integration.storage.conftest import MakeJob
from tests.integration.waits import until_somebody_waits_for_a_lock

DAY = 86_400
NOBODYS = "file_" + "0" * 64
MakeFile = Callable[..., File]


@pytest.fixture
def api(migrated: Embedded) -> Iterator[Database]:
    """Connections of the test's own, since several are open at once."""
    db = Database(migrated.database_urls["api"], 5)
    yield db
    db.close()


@pytest.fixture
def sweeper(databases: Mapping[DatabaseRole, Database]) -> Database:
    return databases["sweeper"]


@pytest.fixture
def stranger(database: Database) -> str:
    """Another account than the test's."""
    return accounts.create_account(database, "stranger")


def declared(account: str, data: bytes, **sides: int) -> NewFile:
    file_id = files.id_of(data)
    return NewFile(account, file_id, "image/png", len(data), files.new_key(account, file_id), **sides)


@pytest.fixture
def make_file(api: Database, account: str) -> MakeFile:
    """A file that is ready, without an object."""

    def make(data: bytes = b"picture", *, owner: str = account) -> File:
        return files.record(api, declared(owner, data, width=3, height=2), keep_seconds=DAY)[0]

    return make


def link(db: Database, job: Job, *file_ids: str) -> None:
    db.run(lambda held: files.link(held, job.account_id, [(job.id, file_ids)]), account_id=job.account_id)


def let_its_time_pass(database: Database, file: File) -> None:
    statement = text("UPDATE files SET expires_at = now() - interval '1 second' WHERE object_key = :key")
    with database.transaction() as connection:
        assert connection.execute(statement, {"key": file.object_key}).rowcount == 1


def row_of(database: Database, file: File) -> Mapping[Any, Any] | None:
    query = text("SELECT * FROM files WHERE account_id = :account_id AND id = :id")
    with database.transaction() as connection:
        row = connection.execute(query, {"account_id": file.account_id, "id": file.id}).one_or_none()
    return None if row is None else row._mapping


def test_the_same_bytes_are_one_file_of_an_account_and_another_of_another(
    api: Database, account: str, stranger: str, make_file: MakeFile
) -> None:
    first = make_file(b"a")
    again, is_new = files.record(api, declared(account, b"a", width=3, height=2), keep_seconds=DAY)
    assert (again.object_key, is_new) == (first.object_key, False)
    others, is_new = files.record(api, declared(stranger, b"a", width=3, height=2), keep_seconds=DAY)
    assert is_new
    assert others.id == first.id
    assert others.object_key != first.object_key
    assert others.object_key.startswith(f"{stranger}/files/{first.sha256}-")


def test_only_what_is_there_for_the_account_is_found(
    api: Database, account: str, stranger: str, make_file: MakeFile
) -> None:
    there, deleted = make_file(b"there"), make_file(b"deleted")
    strangers = make_file(b"theirs", owner=stranger)
    coming = files.begin_upload(api, declared(account, b"coming"), keep_seconds=DAY)
    files.delete(api, account, deleted.id)
    asked = [there.id, deleted.id, strangers.id, coming.id, NOBODYS]
    assert files.found(api, account, asked) == {there.id: there}
    assert files.object_keys(api, account, asked) == {there.id: there.object_key}
    for missing in asked[1:]:
        with pytest.raises(NotFound):
            files.get(api, account, missing)
    assert [file.id for file in files.list_files(api, account, limit=10)] == [there.id]


def test_a_list_goes_on_after_its_last_file(api: Database, account: str, make_file: MakeFile) -> None:
    made = [make_file(bytes([number])) for number in range(5)]
    page = files.list_files(api, account, limit=2)
    rest = files.list_files(api, account, limit=9, before=(page[-1].created_at, page[-1].id))
    assert [file.id for file in page + rest] == [file.id for file in reversed(made)]


def test_a_file_that_nobody_has_named_expires_and_one_that_a_job_has_named_never_does(
    api: Database, sweeper: Database, database: Database, account: str, make_job: MakeJob, make_file: MakeFile
) -> None:
    unused, used = make_file(b"unused"), make_file(b"used")
    link(api, make_job(), used.id)
    assert files.get(api, account, used.id).expires_at is None
    let_its_time_pass(database, unused)
    let_its_time_pass(database, used)  # which nothing does; it stays all the same
    files.expire(sweeper)
    assert files.found(api, account, [unused.id, used.id]).keys() == {used.id}


def test_sending_a_file_again_gives_it_its_time_again(
    api: Database, sweeper: Database, database: Database, account: str, make_job: MakeJob, make_file: MakeFile
) -> None:
    file, used = make_file(), make_file(b"used")
    link(api, make_job(), used.id)
    let_its_time_pass(database, file)
    kept = files.keep(api, account, file.id, keep_seconds=DAY)
    assert kept is not None
    assert kept.expires_at is not None
    files.expire(sweeper)
    assert files.get(api, account, file.id) == kept
    assert files.keep(api, account, used.id, keep_seconds=1) == files.get(api, account, used.id)
    assert files.get(api, account, used.id).expires_at is None
    assert files.keep(api, account, NOBODYS, keep_seconds=DAY) is None


@pytest.mark.parametrize("is_named_before", [False, True])
def test_a_sweeper_passes_over_a_file_that_a_job_is_about_to_name(
    api: Database,
    sweeper: Database,
    database: Database,
    make_job: MakeJob,
    make_file: MakeFile,
    is_named_before: bool,
) -> None:
    file = make_file()
    if is_named_before:
        link(api, make_job(), file.id)
    let_its_time_pass(database, file)
    job = make_job()
    with api.transaction(account_id=job.account_id) as connection:
        files.link(connection, job.account_id, [(job.id, [file.id])])
        files.expire(sweeper)
    files.expire(sweeper)
    assert files.get(api, job.account_id, file.id).expires_at is None


@pytest.mark.parametrize("is_named_before", [False, True])
def test_a_job_that_names_a_file_which_goes_at_that_moment_is_told_and_not_created(
    api: Database, database: Database, make_job: MakeJob, make_file: MakeFile, is_named_before: bool
) -> None:
    file, job = make_file(), make_job()
    if is_named_before:
        link(api, make_job(), file.id)
    with ThreadPoolExecutor() as pool:
        with database.transaction() as connection:  # as a sweeper that has not committed yet
            connection.execute(text("UPDATE files SET deleted_at = now() WHERE id = :id"), {"id": file.id})
            naming = pool.submit(link, api, job, file.id)
            until_somebody_waits_for_a_lock(database)
        with pytest.raises(FileGone) as gone:
            naming.result(20)
    assert gone.value.file_ids == [file.id]
    assert num_links(database, file) == is_named_before


def test_a_deletion_waits_for_the_job_that_is_being_created_and_sees_it(
    api: Database, database: Database, account: str, make_job: MakeJob, make_file: MakeFile
) -> None:
    file, job = make_file(), make_job()
    with ThreadPoolExecutor() as pool:
        with api.transaction(account_id=account) as connection:
            files.link(connection, account, [(job.id, [file.id])])
            deleting = pool.submit(files.delete, api, account, file.id)
            until_somebody_waits_for_a_lock(database)
        with pytest.raises(FileInUse, match=job.id):
            deleting.result(20)
    assert files.get(api, account, file.id).is_ready


def test_jobs_that_name_the_same_file_do_not_wait_for_each_other(
    api: Database, account: str, make_job: MakeJob, make_file: MakeFile
) -> None:
    file = make_file()
    link(api, make_job(), file.id)
    first, second = make_job(), make_job()
    with ExitStack() as stack:
        for job in (first, second):
            connection = stack.enter_context(api.transaction(account_id=account))
            files.link(connection, account, [(job.id, [file.id])])


def test_a_file_can_be_deleted_once_its_jobs_have_ended(
    api: Database, account: str, make_job: MakeJob, make_file: MakeFile
) -> None:
    file, job = make_file(), make_job()
    link(api, job, file.id, file.id)
    with pytest.raises(FileInUse):
        files.delete(api, account, file.id)
    jobs.cancel(api, account, job.id)
    files.delete(api, account, file.id)
    with pytest.raises(NotFound):
        files.delete(api, account, file.id)


def test_what_cannot_be_linked_is_named_and_nothing_is_linked(
    api: Database, account: str, stranger: str, database: Database, make_job: MakeJob, make_file: MakeFile
) -> None:
    there, theirs = make_file(b"there"), make_file(b"theirs", owner=stranger)
    with pytest.raises(FileGone) as gone:
        link(api, make_job(), there.id, theirs.id, NOBODYS)
    assert gone.value.file_ids == sorted([theirs.id, NOBODYS])
    assert num_links(database, there) == 0
    assert files.get(api, account, there.id).expires_at is not None


def test_a_deleted_file_that_is_sent_again_is_the_same_file_with_an_object_of_its_own(
    api: Database, account: str, make_job: MakeJob, make_file: MakeFile
) -> None:
    file, job = make_file(), make_job()
    link(api, job, file.id)
    jobs.cancel(api, account, job.id)
    files.delete(api, account, file.id)
    again = make_file()
    assert again.id == file.id
    assert again.object_key != file.object_key
    assert again.expires_at is None, "a job has named it"


def test_a_row_goes_with_its_object_unless_a_job_has_named_the_file(
    api: Database, sweeper: Database, account: str, database: Database, make_job: MakeJob, make_file: MakeFile
) -> None:
    unused, used, job = make_file(b"unused"), make_file(b"used"), make_job()
    link(api, job, used.id)
    jobs.cancel(api, account, job.id)
    for file in (unused, used):
        files.forget(sweeper, file.object_key)  # before it is deleted: nothing happens
        assert files.get(api, account, file.id).object_key == file.object_key
        files.delete(api, account, file.id)
        assert file.object_key in files.deleted_keys(sweeper)
        files.forget(sweeper, file.object_key)
        assert file.object_key not in files.deleted_keys(sweeper)
    assert row_of(database, unused) is None
    kept = row_of(database, used)
    assert kept is not None
    assert kept["object_key"] is None


def test_a_file_that_came_again_is_not_forgotten_with_its_old_object(
    api: Database, sweeper: Database, account: str, make_file: MakeFile
) -> None:
    file = make_file()
    files.delete(api, account, file.id)
    (old_key,) = [key for key in files.deleted_keys(sweeper) if key == file.object_key]
    again = make_file()
    files.forget(sweeper, old_key)
    assert files.get(api, account, file.id) == again


def test_an_upload_keeps_its_key_while_it_is_declared_alike(api: Database, account: str) -> None:
    begin = partial(files.begin_upload, api, keep_seconds=DAY)
    first = begin(declared(account, b"a"))
    assert (first.state, first.width) == ("uploading", 0)
    assert begin(declared(account, b"a")).object_key == first.object_key
    other = NewFile(account, first.id, "image/webp", 1, files.new_key(account, first.id))
    changed = begin(other)
    assert changed.object_key != first.object_key
    with pytest.raises(NotFound):
        files.complete(api, first, width=1, height=1, keep_seconds=DAY)
    ready = files.complete(api, changed, width=1, height=1, keep_seconds=DAY)
    assert ready.is_ready
    assert begin(declared(account, b"a")) == ready
    assert files.complete(api, changed, width=9, height=9, keep_seconds=DAY) == ready


def test_an_upload_that_was_never_completed_expires_too(
    api: Database, sweeper: Database, database: Database, account: str
) -> None:
    file = files.begin_upload(api, declared(account, b"a"), keep_seconds=DAY)
    let_its_time_pass(database, file)
    files.expire(sweeper)
    assert file.object_key in files.deleted_keys(sweeper)
    with pytest.raises(NotFound):
        files.complete(api, file, width=1, height=1, keep_seconds=DAY)


def test_a_worker_reads_the_files_of_every_account_and_what_is_damaged_is_not_taken(
    databases: Mapping[DatabaseRole, Database], blobs: Blobs, make_file: MakeFile, account: str, stranger: str
) -> None:
    worker = databases["worker"]
    for owner in (account, stranger):
        file = make_file(b"picture", owner=owner)
        blobs.put(file.object_key, b"picture", content_type="image/png", budget_seconds=10)
        assert files.read(worker, blobs, owner, [file.id]) == {file.id: b"picture"}
    damaged = make_file(b"whole")
    blobs.put(damaged.object_key, b"half", content_type="image/png", budget_seconds=10)
    with pytest.raises(BlobDamaged):
        files.read(worker, blobs, account, [damaged.id])
    with pytest.raises(FileGone) as gone:
        files.read(worker, blobs, account, [damaged.id, NOBODYS])
    assert gone.value.file_ids == [NOBODYS]


def num_links(database: Database, file: File) -> int:
    def work(connection: Connection) -> int:
        query = text("SELECT count(*) FROM job_files WHERE file_id = :id AND account_id = :account_id")
        values = {"id": file.id, "account_id": file.account_id}
        return int(connection.execute(query, values).scalar_one())

    return database.run(work)
