"""Copies an installation into a folder, and an installation out of such a folder: rows, then objects.

The rows are one consistent snapshot, which pg_dump takes, and the objects are those that its rows name. It
knows neither what a request asks for nor how to start a service.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from sqlalchemy import Connection, NullPool, create_engine, text

from local.binaries import postgres_program, postgres_tree
from local.errors import LocalError
from settings import ROOT
from storage import dispatches, jobs
from storage.blobs import Blobs
from storage.connections import tls_options
from storage.database import LONG_SECONDS, Database
from storage.errors import BlobError, BlobNotFound
from storage.jobs import Lease
from storage.objects import NamedObject, named_objects, note_missing

ROWS, OBJECTS, MANIFEST = "rows.dump", "objects", "manifest.json"
FORMAT = 1
NUM_THREADS = 8
UPLOAD_SECONDS = 60.0
AT_ONCE = 500
RELEASED = "restored"
"""The code with which a job goes back to the queue that ran when the backup was made."""

Say = Callable[[str], object]


@dataclass
class Manifest:
    """What a backup holds; it is written last, so that a folder without it is no backup."""

    format: int
    revision: str
    made_at: str
    rows_sha256: str
    num_jobs: int
    num_objects: int = 0
    num_bytes: int = 0
    objects: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """The keys of objects that rows name and the store did not have."""


@dataclass(frozen=True)
class OwnedDatabase:
    """The database as its owner reaches it: by our pool, and by PostgreSQL's programs."""

    db: Database
    url: str
    ca_file: Path | None

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A transaction that reads the rows of one moment, however long it stays open."""
        url = self.url.replace("postgresql://", "postgresql+psycopg2://", 1)
        engine = create_engine(
            url,
            poolclass=NullPool,
            isolation_level="REPEATABLE READ",
            connect_args=tls_options(self.url, self.ca_file),
        )
        try:
            with engine.begin() as connection:
                yield connection
        finally:
            engine.dispose()

    def run(self, program: str, *arguments: str) -> None:
        """Run pg_dump or pg_restore; raises `LocalError` with what it said."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        user = parts.username or ""
        address = urlunsplit((parts.scheme, f"{user}@{host}", parts.path, parts.query, ""))
        tls = {f"PG{name.upper()}": str(value) for name, value in tls_options(self.url, self.ca_file).items()}
        # The password is not among the arguments, which every user of the machine can read.
        environment = {**os.environ, **tls, "PGPASSWORD": unquote(parts.password or "")}
        command = [self._program(program), f"--dbname={address}", "--no-password", *arguments]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode:
            said = ended.stderr.strip().splitlines()
            raise LocalError(f"{program} failed: {said[-1] if said else f'exit code {ended.returncode}'}")

    def check_archive(self, rows: Path) -> None:
        """Raise `LocalError` unless `pg_restore` is there and reads this file."""
        program = self._program("pg_restore")
        ended = subprocess.run([program, "--list", str(rows)], capture_output=True, text=True, check=False)
        if ended.returncode:
            said = ended.stderr.strip().splitlines()
            raise LocalError(f"{rows} cannot be read: {said[-1] if said else ended.returncode}")

    def _program(self, name: str) -> str:
        """A program of PostgreSQL that reads this server: on the path, or the embedded server's."""
        with self.db.transaction() as connection:
            server = connection.execute(text("SHOW server_version_num")).scalar_one()
        wanted = int(server) // 10_000
        found = {program: _major(program) for program in _candidates(name)}
        for program, major in found.items():
            if major >= wanted:
                return program
        there = ", ".join(f"{program} ({major})" for program, major in found.items()) or "none"
        raise LocalError(f"{name} of PostgreSQL {wanted} or newer is needed on the path; there is: {there}")


def _candidates(name: str) -> Iterator[str]:
    if on_path := shutil.which(name):
        yield on_path
    with suppress(LocalError):  # an image has no embedded server
        yield str(postgres_program(postgres_tree(), name))


def _major(program: str) -> int:
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\) (\d+)", shown)  # pg_dump (PostgreSQL) 18.1 (...)
    return int(found[1]) if found else 0


def back_up(database: OwnedDatabase, blobs: Blobs, folder: Path, say: Say = lambda _: None) -> Manifest:
    """Copy all rows, and each object that they name and the folder lacks. Raises `LocalError`.

    The folder may be that of an earlier backup, which is replaced once this one is complete.
    """
    (folder / OBJECTS).mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = folder / f".{ROWS}"
    with database.snapshot() as connection:
        snapshot = connection.execute(text("SELECT pg_export_snapshot()")).scalar_one()
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        num_jobs = connection.execute(text("SELECT count(*) FROM jobs")).scalar_one()
        say(f"rows: {num_jobs} jobs")
        dump = ("--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}")
        unfinished.touch(0o600)
        database.run("pg_dump", *dump, f"--file={unfinished}")
        made_at = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest(FORMAT, revision, made_at, _digest(unfinished), num_jobs)
        for number, (one, is_there) in enumerate(_copied(blobs, folder, named_objects(connection)), start=1):
            if is_there:
                manifest.objects.append(asdict(one))
                manifest.num_bytes += one.num_bytes
            else:
                manifest.missing.append(one.key)
            if number % AT_ONCE == 0:
                say(f"objects: {number}")
    manifest.num_objects = len(manifest.objects)
    unfinished.replace(folder / ROWS)
    _write(folder / MANIFEST, json.dumps(asdict(manifest), indent=1).encode())
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """What the backup in this folder holds; raises `LocalError` if it is not complete."""
    try:
        manifest = Manifest(**json.loads((folder / MANIFEST).read_text("utf-8")))
    except FileNotFoundError as error:
        raise LocalError(f"{folder} holds no complete backup: it has no {MANIFEST}") from error
    except (ValueError, TypeError) as error:
        raise LocalError(f"{folder / MANIFEST} is damaged ({error})") from error
    if manifest.format != FORMAT:
        raise LocalError(f"{folder} has format {manifest.format}, and this version reads {FORMAT}")
    if not (folder / ROWS).is_file() or _digest(folder / ROWS) != manifest.rows_sha256:
        raise LocalError(f"{folder / ROWS} is not the file that {MANIFEST} describes")
    return manifest


def restore(
    database: OwnedDatabase,
    blobs: Blobs,
    folder: Path,
    migrate: Callable[[], object],
    *,
    replaces: bool = False,
    say: Say = lambda _: None,
) -> tuple[Manifest, list[str]]:
    """Replace the rows by those of a backup, upload its objects, and let its open jobs run.

    Returns what the backup held, and the keys of objects that are missing. Without `replaces` the database
    must have no jobs. `migrate` brings the schema to the newest version. Raises `LocalError`.
    """
    manifest = read_manifest(folder)
    _check_revision(manifest)
    database.check_archive(folder / ROWS)
    blobs.check()
    _clear(database.db, replaces=replaces)
    say(f"rows: {manifest.num_jobs} jobs")
    try:
        database.run(
            "pg_restore",
            *("--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges", str(folder / ROWS)),
        )
    finally:
        migrate()  # also if it failed: then the schema is there, and empty
    missing = [*manifest.missing, *_uploaded(blobs, folder, manifest, say)]
    for start in range(0, len(missing), AT_ONCE):
        note_missing(database.db, missing[start : start + AT_ONCE])
    _let_jobs_run(database.db)
    return manifest, missing


def _check_revision(manifest: Manifest) -> None:
    known = {path.stem for path in (ROOT / "migrations" / "versions").glob("[0-9]*.py")}
    if manifest.revision not in known:
        raise LocalError(
            f"the backup's schema is {manifest.revision}, which this version does not know: restore it with "
            "the version that made it, or a newer one"
        )


def _clear(db: Database, *, replaces: bool) -> None:
    with db.transaction(seconds=LONG_SECONDS) as connection:
        there = connection.execute(text("SELECT to_regclass('jobs') IS NOT NULL")).scalar_one()
        num_jobs = connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() if there else 0
        if num_jobs and not replaces:
            raise LocalError(
                f"the database has {num_jobs} jobs, which would be lost: restore into an empty installation, "
                "or give --replace"
            )
        schema = connection.dialect.identifier_preparer.quote_identifier(
            connection.execute(text("SELECT current_schema()")).scalar_one()
        )
        connection.exec_driver_sql("SET LOCAL lock_timeout = '10s'")
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")


def _let_jobs_run(db: Database) -> None:
    """Give back what ran when the backup was made, to nobody's charge, and forget what no broker knows."""
    held = text(
        """SELECT id, attempt, lease_token FROM jobs WHERE state = 'running' AND id > :after
            ORDER BY id LIMIT :limit"""
    )
    last = ""
    # Each job once: a worker may claim one that was given back.
    while rows := db.execute(held, {"after": last, "limit": AT_ONCE}):
        last = rows[-1].id
        jobs.release_each(
            db,
            [Lease(row.id, row.attempt, str(row.lease_token)) for row in rows],
            code=RELEASED,
            detail="it ran when the backup was made that this installation was restored from",
            charged=False,
            max_attempts=1,
            backoff_seconds=0,
        )
    db.execute(text("UPDATE workers SET stopped_at = clock_timestamp() WHERE stopped_at IS NULL"))
    dispatches.forget_all(db)


def _copied(blobs: Blobs, folder: Path, objects: Iterator[NamedObject]) -> Iterator[tuple[NamedObject, bool]]:
    """Each object, and whether the folder has it now."""

    def copy(one: NamedObject) -> tuple[NamedObject, bool]:
        return one, _copy(blobs, folder, one)

    with ThreadPoolExecutor(NUM_THREADS, "backup") as pool:
        while page := list(islice(objects, AT_ONCE)):
            yield from pool.map(copy, page)


def _copy(blobs: Blobs, folder: Path, one: NamedObject) -> bool:
    path = folder / OBJECTS / one.key
    if path.is_file() and path.stat().st_size == one.num_bytes:
        return True  # an object never changes
    try:
        data = blobs.get(one.key)
    except BlobNotFound:
        return False
    except BlobError as error:
        raise LocalError(f"the object {one.key} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != one.sha256:
        return False
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(path, data)
    return True


def _uploaded(blobs: Blobs, folder: Path, manifest: Manifest, say: Say) -> Iterator[str]:
    """Upload all objects; yields the keys of those that the folder lacks or whose bytes are others."""

    def upload(described: Mapping[str, Any]) -> str | None:
        one = NamedObject(**described)
        try:
            data = (folder / OBJECTS / one.key).read_bytes()
        except FileNotFoundError:
            return one.key
        if hashlib.sha256(data).hexdigest() != one.sha256:
            return one.key
        try:
            blobs.put(one.key, data, content_type=one.content_type, budget_seconds=UPLOAD_SECONDS)
        except BlobError as error:
            raise LocalError(f"the object {one.key} cannot be stored: {error}; run it again") from error
        return None

    with ThreadPoolExecutor(NUM_THREADS, "restore") as pool:
        for number, key in enumerate(pool.map(upload, manifest.objects), start=1):
            if key is not None:
                yield key
            if number % AT_ONCE == 0:
                say(f"objects: {number} of {manifest.num_objects}")


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; only its owner can read it."""
    unfinished = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as output:
        output.write(data)
    unfinished.replace(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
