"""A backup and a restore, rehearsed: what was stored is there again, and what was open goes on."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from catalogue.states import State
from local.backup import MANIFEST, OBJECTS, ROWS, OwnedDatabase, back_up, read_manifest, restore
from local.endpoints import Embedded
from local.errors import LocalError
from storage import accounts, batches, files, jobs, submissions
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import BlobNotFound
from storage.files import NewFile
from storage.job_views import Job, StoredImage, get
from storage.jobs import Claim, WorkerName
from tests.fixtures.databases import empty_database
from tests.fixtures.new_jobs import new_job

Migrate = Callable[[str], None]
WORKER = WorkerName("boot", "cpu:0@test")


@pytest.fixture
def migrate(alembic_config: Config, monkeypatch: pytest.MonkeyPatch) -> Migrate:
    """Brings a database to the newest schema."""

    def run(url: str) -> None:
        monkeypatch.setenv("CALOTYPE_DATABASE_URL", url)
        command.upgrade(alembic_config, "head")

    return run


@dataclass
class Installation:
    """A database with one account, and the bucket."""

    database: OwnedDatabase
    blobs: Blobs
    account: str = ""

    @property
    def db(self) -> Database:
        return self.database.db

    def submit(self, **changes: object) -> Job:
        new = new_job(self.account, **changes)
        return submissions.create(self.db, new, redispatch_seconds=15)[0]

    def claim(self, job: Job) -> Claim:
        claimed = jobs.claim(self.db, job.id, tiers=["sd"], worker=WORKER, lease_seconds=30)
        assert claimed is not None
        return claimed

    def succeed(self, data: bytes) -> Job:
        claim = self.claim(self.submit())
        key = f"{self.account}/{claim.job.id}/a1/0-{data.hex()}.png"
        stored = self.blobs.put(key, data, content_type="image/png", budget_seconds=10)
        image = StoredImage(0, 1, key, stored.sha256, stored.num_bytes, 64, 64)
        assert jobs.finish(self.db, claim.lease, stored=[image], warnings=[], timings={})
        return self.get(claim.job)

    def get(self, job: Job) -> Job:
        return get(self.db, self.account, job.id)


@pytest.fixture
def source(services: Embedded, blobs: Blobs, migrate: Migrate) -> Iterator[Installation]:
    url = empty_database(services, "source")
    migrate(url)
    made = Installation(OwnedDatabase(Database(url, 2), url, None), blobs)
    made.account = accounts.create_account(made.db, "test")
    yield made
    made.db.close()


@pytest.fixture
def target(services: Embedded, blobs: Blobs) -> Iterator[Installation]:
    """An empty database, and the same bucket, from which a test deletes what was lost."""
    url = empty_database(services, "target")
    made = Installation(OwnedDatabase(Database(url, 2), url, None), blobs)
    yield made
    made.db.close()


def restored(
    target: Installation, source: Installation, folder: Path, migrate: Migrate, *, replaces: bool = False
) -> list[str]:
    target.account = source.account
    url = target.database.url
    return restore(target.database, target.blobs, folder, lambda: migrate(url), replaces=replaces)[1]


def test_a_restored_installation_has_its_images_and_goes_on_where_it_was(
    source: Installation, target: Installation, migrate: Migrate, tmp_path: Path
) -> None:
    done, lost = source.succeed(b"kept"), source.succeed(b"lost")
    queued, bulk = source.submit(idempotency_key="once", request_hash="same"), source.submit(lane="bulk")
    running = source.submit()
    source.claim(running)
    made, _ = batches.create(
        source.db, source.account, "a.csv", [new_job(source.account, lane="bulk", batch_line=2)]
    )
    file_id = files.id_of(b"input")
    new = NewFile(source.account, file_id, "image/png", 5, files.new_key(source.account, file_id), 1, 1)
    source.blobs.put(new.object_key, b"input", content_type="image/png", budget_seconds=10)
    files.record(source.db, new, keep_seconds=3600)
    source.blobs.delete(lost.images[0].object_key)

    manifest = back_up(source.database, source.blobs, tmp_path / "backup")
    assert (manifest.num_jobs, manifest.num_objects) == (6, 2)
    assert manifest.missing == [lost.images[0].object_key]
    for key in (done.images[0].object_key, new.object_key):
        source.blobs.delete(key)

    assert restored(target, source, tmp_path / "backup", migrate) == manifest.missing
    assert target.get(done) == done
    assert target.blobs.get(done.images[0].object_key) == b"kept"
    assert files.read(target.db, target.blobs, source.account, [file_id]) == {file_id: b"input"}
    (image,) = target.get(lost).images
    assert image.missing_at is not None
    assert not image.is_there
    after = target.get(running)
    assert (after.state, after.num_failures, after.quarantined) == (State.QUEUED, 0, False)
    assert batches.get(target.db, source.account, made.id).counts == {State.QUEUED: 1}
    again = new_job(source.account, idempotency_key="once", request_hash="same")
    assert submissions.create(target.db, again, redispatch_seconds=15).job.id == queued.id
    for job in (queued, running):
        claim = target.claim(job)
        assert jobs.finish(target.db, claim.lease, stored=[], warnings=[], timings={})
    claims = jobs.claim_next(target.db, tiers=["sd"], worker=WORKER, lease_seconds=30, limit=10)
    assert bulk.id in {claim.job.id for claim in claims}


def test_a_backup_into_the_same_folder_copies_only_new_objects(
    source: Installation, blobs: Blobs, tmp_path: Path
) -> None:
    class Counting:
        def __init__(self) -> None:
            self.keys: list[str] = []

        def get(self, key: str) -> bytes:
            self.keys.append(key)
            return blobs.get(key)

    source.succeed(b"first")
    back_up(source.database, blobs, tmp_path)
    second, counting = source.succeed(b"second"), Counting()
    manifest = back_up(source.database, counting, tmp_path)  # type: ignore[arg-type]  # what of it is used
    assert counting.keys == [second.images[0].object_key]
    assert manifest.num_objects == 2
    assert read_manifest(tmp_path) == manifest


def test_a_backup_is_one_moment_although_the_service_goes_on(
    source: Installation, target: Installation, migrate: Migrate, tmp_path: Path
) -> None:
    source.succeed(b"before")

    def go_on(line: str) -> None:
        if line.startswith("rows"):  # before they are dumped and the objects listed
            source.succeed(b"during")

    manifest = back_up(source.database, source.blobs, tmp_path, go_on)
    assert (manifest.num_jobs, manifest.num_objects) == (1, 1)
    assert restored(target, source, tmp_path, migrate) == []
    with target.db.transaction() as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 1


def test_only_their_owner_can_read_the_files(source: Installation, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    source.succeed(b"private")
    back_up(source.database, source.blobs, folder)
    readable = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    assert not readable


def test_an_installation_with_jobs_is_not_replaced_unasked(
    source: Installation, target: Installation, migrate: Migrate, tmp_path: Path
) -> None:
    kept = source.succeed(b"one")
    back_up(source.database, source.blobs, tmp_path)
    restored(target, source, tmp_path, migrate)
    extra = target.submit()
    with pytest.raises(LocalError, match="has 2 jobs, which would be lost"):
        restored(target, source, tmp_path, migrate)
    assert target.get(extra).id == extra.id
    restored(target, source, tmp_path, migrate, replaces=True)
    assert target.get(kept) == kept
    with target.db.transaction() as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 1


def test_what_is_no_whole_backup_is_refused_and_changes_nothing(
    source: Installation, target: Installation, migrate: Migrate, tmp_path: Path
) -> None:
    job = source.succeed(b"whole")
    with pytest.raises(LocalError, match="no complete backup"):
        restored(target, source, tmp_path, migrate)
    back_up(source.database, source.blobs, tmp_path)
    document = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**document, "revision": "9999_of_the_future"}))
    with pytest.raises(LocalError, match="which this version does not know"):
        restored(target, source, tmp_path, migrate)
    (tmp_path / MANIFEST).write_text(json.dumps(document))
    rows = (tmp_path / ROWS).read_bytes()
    (tmp_path / ROWS).write_bytes(rows[:-1])
    with pytest.raises(LocalError, match=r"is not the file that manifest\.json describes"):
        restored(target, source, tmp_path, migrate)
    (tmp_path / ROWS).write_bytes(rows)
    (tmp_path / OBJECTS / job.images[0].object_key).write_bytes(b"other")
    source.blobs.delete(job.images[0].object_key)
    assert restored(target, source, tmp_path, migrate) == [job.images[0].object_key]
    with pytest.raises(BlobNotFound):
        target.blobs.get(job.images[0].object_key)


def test_no_role_may_do_more_after_a_restore(
    source: Installation, target: Installation, migrate: Migrate, tmp_path: Path
) -> None:
    back_up(source.database, source.blobs, tmp_path / "backup")
    restored(target, source, tmp_path / "backup", migrate)
    query = text(
        """SELECT rolname || ' ' || proname FROM pg_proc CROSS JOIN pg_roles
            WHERE pronamespace = CAST('public' AS regnamespace) AND prosecdef
              AND rolname LIKE 'calotype!_%' ESCAPE '!'
              AND has_function_privilege(pg_roles.oid, pg_proc.oid, 'EXECUTE') ORDER BY 1"""
    )
    before, after = ([row[0] for row in one.db.execute(query)] for one in (source, target))
    assert "calotype_sweeper erase_old_jobs" in before
    assert after == before


def test_an_archive_that_cannot_be_read_leaves_the_rows_that_are_there(
    source: Installation, migrate: Migrate, tmp_path: Path
) -> None:
    job = source.submit()
    folder = tmp_path / "backup"
    back_up(source.database, source.blobs, folder)
    (folder / ROWS).write_bytes(b"no archive")
    document = json.loads((folder / MANIFEST).read_text())
    document["rows_sha256"] = hashlib.sha256(b"no archive").hexdigest()
    (folder / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(LocalError, match="cannot be read"):
        restored(source, source, folder, migrate, replaces=True)
    assert source.get(job).id == job.id
