"""The files of accounts, which jobs use as input images: recorded, found, linked to jobs and deleted.

A file's id is the digest of its bytes, unique within its account. A row is `uploading` from the presigned
link until its bytes have been checked, then `ready`. A file that no job names expires; one that a job names
stays until its owner deletes it. The caller writes objects before their rows and deletes them after. This
module knows no image formats, and uses the store for reading only.
"""

import hashlib
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from storage.blobs import Blobs
from storage.database import Database
from storage.errors import BlobDamaged, FileGone, FileInUse, NotFound

PREFIX = "file_"
AT_ONCE = 500


@dataclass(frozen=True)
class File:
    """A file. While it is `uploading`, its values are as declared, and its width and height are 0 pixels.

    `expires_at` is `None` once a job has named the file.
    """

    account_id: str
    id: str
    state: str
    media_type: str
    num_bytes: int
    width: int
    height: int
    object_key: str
    created_at: datetime
    expires_at: datetime | None

    @property
    def sha256(self) -> str:
        """The digest of its bytes, in hexadecimal."""
        return self.id.removeprefix(PREFIX)

    @property
    def is_ready(self) -> bool:
        """Whether its bytes are stored and have been checked."""
        return self.state == "ready"


@dataclass(frozen=True)
class NewFile:
    """The values of a new row; without width and height (pixels) the file is still to be uploaded."""

    account_id: str
    id: str
    media_type: str
    num_bytes: int
    object_key: str
    width: int | None = None
    height: int | None = None


def id_of(data: bytes) -> str:
    """The id of a file with these bytes, the same in every account."""
    return PREFIX + hashlib.sha256(data).hexdigest()


def new_key(account_id: str, file_id: str) -> str:
    """A new object key for one upload, unique even among uploads of the same bytes."""
    return f"{account_id}/files/{file_id.removeprefix(PREFIX)}-{secrets.token_hex(8)}"


def keep(db: Database, account_id: str, file_id: str, *, keep_seconds: float) -> File | None:
    """Restart the expiry of a ready file and return it; `None` if there is none."""
    statement = text(
        f"""UPDATE files SET expires_at = CASE WHEN expires_at IS NOT NULL THEN {_EXPIRY} END
             WHERE account_id = :account_id AND id = :id AND {_IS_READY} RETURNING {_COLUMNS}"""
    )
    values = {"account_id": account_id, "id": file_id, "keep_seconds": keep_seconds}
    return db.run(lambda connection: _one(connection, statement, values), account_id=account_id)


def record(db: Database, new: NewFile, *, keep_seconds: float) -> tuple[File, bool]:
    """Insert a file whose object is in the store as `ready`; `(file, False)` if another upload did so first.

    A row that is deleted or still uploading is replaced; its previous object becomes an orphan.
    """
    return _insert(db, new, "ready", keep_seconds)


def begin_upload(db: Database, new: NewFile, *, keep_seconds: float) -> File:
    """Insert the declared file as `uploading`, or return it unchanged if it is ready already.

    The same declaration again keeps its key, so that two uploads of the same bytes do not disturb each other.
    """
    return _insert(db, new, "uploading", keep_seconds)[0]


def get_declared(db: Database, account_id: str, file_id: str) -> File:
    """The file, `uploading` or `ready`; raises `NotFound`."""
    query = text(
        f"""SELECT {_COLUMNS} FROM files
             WHERE account_id = :account_id AND id = :id AND deleted_at IS NULL"""
    )
    with db.transaction(account_id=account_id) as connection:
        file = _one(connection, query, {"account_id": account_id, "id": file_id})
    if file is None:
        raise NotFound(f"no file {file_id!r}")
    return file


def complete(db: Database, file: File, *, width: int, height: int, keep_seconds: float) -> File:
    """Make an uploaded file `ready` after its object was checked; raises `NotFound` if it was deleted."""
    statement = text(
        f"""UPDATE files SET state = 'ready', width = :width, height = :height, expires_at = {_EXPIRY}
             WHERE account_id = :account_id AND id = :id AND object_key = :object_key
               AND state = 'uploading' AND deleted_at IS NULL RETURNING {_COLUMNS}"""
    )
    values = {
        "account_id": file.account_id,
        "id": file.id,
        "object_key": file.object_key,
        "width": width,
        "height": height,
        "keep_seconds": keep_seconds,
    }
    made = db.run(lambda connection: _one(connection, statement, values), account_id=file.account_id)
    return made or get(db, file.account_id, file.id)


def move(db: Database, file: File, object_key: str) -> File:
    """Replace the lost object of a ready file by another with the same bytes; raises `NotFound`."""
    statement = text(
        f"""UPDATE files SET object_key = :new_key
             WHERE account_id = :account_id AND id = :id AND object_key = :object_key AND {_IS_READY}
            RETURNING {_COLUMNS}"""
    )
    values = {
        "account_id": file.account_id,
        "id": file.id,
        "object_key": file.object_key,
        "new_key": object_key,
    }
    moved = db.run(lambda connection: _one(connection, statement, values), account_id=file.account_id)
    return moved or get(db, file.account_id, file.id)


def get(db: Database, account_id: str, file_id: str) -> File:
    """The ready file; raises `NotFound`."""
    file = found(db, account_id, [file_id]).get(file_id)
    if file is None:
        raise NotFound(f"no file {file_id!r}")
    return file


def found(db: Database, account_id: str, file_ids: Collection[str]) -> Mapping[str, File]:
    """The ready files among these, by id; other ids are left out."""
    query = text(
        f"""SELECT {_COLUMNS} FROM files
             WHERE account_id = :account_id AND id = ANY(:ids) AND {_IS_READY}"""
    )
    if not file_ids:
        return {}
    with db.transaction(account_id=account_id) as connection:
        rows = connection.execute(query, {"account_id": account_id, "ids": list(file_ids)})
        return {row.id: _file(row) for row in rows}


def list_files(
    db: Database, account_id: str, *, limit: int, before: tuple[datetime, str] | None = None
) -> list[File]:
    """A page of ready files, newest first, starting after the position `before` (created_at, id)."""
    query = text(
        f"""SELECT {_COLUMNS} FROM files
             WHERE account_id = :account_id AND {_IS_READY}
               AND (CAST(:created_at AS timestamptz) IS NULL OR (created_at, id) < (:created_at, :id))
             ORDER BY created_at DESC, id DESC LIMIT :limit"""
    )
    created_at, last_id = before or (None, None)
    values = {"account_id": account_id, "created_at": created_at, "id": last_id, "limit": limit}
    with db.transaction(account_id=account_id) as connection:
        return [_file(row) for row in connection.execute(query, values)]


def object_keys(db: Database, account_id: str, file_ids: Collection[str]) -> Mapping[str, str]:
    """The object keys of the ready files among these, by id."""
    return {file_id: file.object_key for file_id, file in found(db, account_id, file_ids).items()}


def read(db: Database, blobs: Blobs, account_id: str, file_ids: Collection[str]) -> Mapping[str, bytes]:
    """The bytes of these files as they were uploaded, by id; for a worker.

    Raises `FileGone` with the missing ids, `BlobDamaged` and other `BlobError`s.
    """
    there = found(db, account_id, file_ids)
    if missing := set(file_ids) - there.keys():
        raise FileGone(missing)
    return {file_id: _whole(blobs, file) for file_id, file in there.items()}


def link(connection: Connection, account_id: str, named: Iterable[tuple[str, Collection[str]]]) -> None:
    """Link jobs to the files that they name, given as (job id, file ids), in the jobs' own transaction.

    The files no longer expire. Raises `FileGone` for those that are not ready or were just deleted; the
    transaction must be rolled back then.
    """
    pairs = sorted((job_id, file_id) for job_id, file_ids in named for file_id in set(file_ids))
    if not pairs:
        return
    ids = sorted({file_id for _, file_id in pairs})
    values = {"account_id": account_id, "ids": ids}
    # Clearing the expiry first waits for a sweeper that is expiring one of the files. Then the remaining rows
    # are locked until the commit: FOR SHARE blocks a deletion, but not other jobs that name the same file.
    connection.execute(_STAY, values)
    if missing := set(ids) - set(connection.execute(_LOCK, values).scalars()):
        raise FileGone(missing)
    columns = {"jobs": [job_id for job_id, _ in pairs], "files": [file_id for _, file_id in pairs]}
    connection.execute(_LINK, {"account_id": account_id, **columns})


def delete(db: Database, account_id: str, file_id: str) -> None:
    """Mark a file as deleted; the sweeper removes its object.

    Raises `NotFound`, and `FileInUse` while a queued or running job names it.
    """
    lock = text(
        """SELECT id FROM files WHERE account_id = :account_id AND id = :id AND deleted_at IS NULL
              FOR UPDATE"""
    )
    # A separate statement, since it must see jobs committed while this one waited for the lock.
    user = text(
        """SELECT job_id FROM job_files JOIN jobs ON jobs.id = job_id
            WHERE job_files.account_id = :account_id AND file_id = :id AND state IN ('queued', 'running')
            LIMIT 1"""
    )
    mark = text("UPDATE files SET deleted_at = clock_timestamp() WHERE account_id = :account_id AND id = :id")
    values = {"account_id": account_id, "id": file_id}

    def work(connection: Connection) -> None:
        if connection.execute(lock, values).one_or_none() is None:
            raise NotFound(f"no file {file_id!r}")
        job_id = connection.execute(user, values).scalar_one_or_none()
        if job_id is not None:
            raise FileInUse(f"job {job_id!r} has not ended and uses this file")
        connection.execute(mark, values)

    db.run(work, account_id=account_id)


def expire(db: Database) -> int:
    """Mark up to `AT_ONCE` files as deleted that no job named before they expired; returns how many."""
    statement = text(
        """UPDATE files SET deleted_at = clock_timestamp() WHERE (account_id, id) IN (
               SELECT account_id, id FROM files
                WHERE expires_at < statement_timestamp() AND deleted_at IS NULL AND NOT EXISTS (
                      SELECT FROM job_files
                       WHERE job_files.account_id = files.account_id AND file_id = files.id)
                ORDER BY expires_at LIMIT :limit FOR UPDATE SKIP LOCKED)"""
    )
    return db.run(lambda connection: connection.execute(statement, {"limit": AT_ONCE}).rowcount)


def deleted_keys(db: Database) -> Sequence[str]:
    """Up to `AT_ONCE` object keys of deleted files, which no row will ever use again."""
    query = text(
        """SELECT object_key FROM files WHERE deleted_at IS NOT NULL AND object_key IS NOT NULL
            ORDER BY deleted_at LIMIT :limit"""
    )
    with db.transaction() as connection:
        return connection.execute(query, {"limit": AT_ONCE}).scalars().all()


def forget(db: Database, object_key: str) -> None:
    """Delete the row of a file whose object was removed; a row that a job names only loses its key."""
    remove = text(
        """DELETE FROM files WHERE object_key = :key AND deleted_at IS NOT NULL AND NOT EXISTS (
               SELECT FROM job_files WHERE job_files.account_id = files.account_id AND file_id = files.id)"""
    )
    empty = text("UPDATE files SET object_key = NULL WHERE object_key = :key AND deleted_at IS NOT NULL")

    def work(connection: Connection) -> None:
        if not connection.execute(remove, {"key": object_key}).rowcount:
            connection.execute(empty, {"key": object_key})

    db.run(work)


def orphaned_files(db: Database, objects: Sequence[tuple[str, str]]) -> list[str]:
    """The keys of those file objects (key, account id) that are orphans.

    An orphan's account is in this database, and no row has its key. A key belongs to one upload, which writes
    its row long before the object is old enough to be checked: the result stays true after the statement.
    """
    query = text(
        """SELECT object.key
             FROM unnest(CAST(:keys AS text[]), CAST(:accounts AS text[])) AS object (key, account_id)
             JOIN accounts ON accounts.id = object.account_id
            WHERE NOT EXISTS (SELECT FROM files WHERE files.object_key = object.key)"""
    )
    columns = {"keys": [key for key, _ in objects], "accounts": [account_id for _, account_id in objects]}
    with db.transaction() as connection:
        return list(connection.scalars(query, columns))


def _insert(db: Database, new: NewFile, state: str, keep_seconds: float) -> tuple[File, bool]:
    values = {**vars(new), "state": state, "keep_seconds": keep_seconds}

    def work(connection: Connection) -> tuple[File, bool]:
        made = _one(connection, _INSERT, values)
        if made is not None:
            return made, True
        ready = _one(connection, _READY, values)
        if ready is None:
            raise NotFound(f"no file {new.id!r}")  # deleted between the two statements
        return ready, False

    return db.run(work, account_id=new.account_id)


def _whole(blobs: Blobs, file: File) -> bytes:
    data = blobs.get(file.object_key)
    if id_of(data) != file.id:
        raise BlobDamaged(f"{file.object_key!r} does not hold the bytes of {file.id}")
    return data


def _one(connection: Connection, statement: Any, values: Mapping[str, object]) -> File | None:
    row = connection.execute(statement, values).one_or_none()
    return None if row is None else _file(row)


def _file(row: Row[Any]) -> File:
    return File(**{**row._mapping, "width": row.width or 0, "height": row.height or 0})


_COLUMNS = "account_id, id, state, media_type, num_bytes, width, height, object_key, created_at, expires_at"
_EXPIRY = "clock_timestamp() + make_interval(secs => :keep_seconds)"
_IS_READY = "state = 'ready' AND deleted_at IS NULL"
# A file that jobs named before it was deleted does not expire either when it is uploaded again.
_INSERT = text(
    f"""INSERT INTO files (account_id, id, state, media_type, num_bytes, width, height, object_key,
                           expires_at)
        VALUES (:account_id, :id, :state, :media_type, :num_bytes, :width, :height, :object_key, {_EXPIRY})
        ON CONFLICT (account_id, id) DO UPDATE
           SET state = excluded.state, media_type = excluded.media_type, num_bytes = excluded.num_bytes,
               width = excluded.width, height = excluded.height, created_at = clock_timestamp(),
               deleted_at = NULL,
               expires_at = CASE WHEN NOT EXISTS (
                   SELECT FROM job_files WHERE account_id = :account_id AND file_id = :id)
                   THEN excluded.expires_at END,
               object_key = CASE WHEN excluded.state = 'uploading' AND files.deleted_at IS NULL
                                  AND files.num_bytes = excluded.num_bytes
                                  AND files.media_type = excluded.media_type
                                 THEN files.object_key ELSE excluded.object_key END
         WHERE files.state = 'uploading' OR files.deleted_at IS NOT NULL
        RETURNING {_COLUMNS}"""
)
_READY = text(f"SELECT {_COLUMNS} FROM files WHERE account_id = :account_id AND id = :id AND {_IS_READY}")
_STAY = text(
    f"""UPDATE files SET expires_at = NULL
         WHERE account_id = :account_id AND id = ANY(:ids) AND expires_at IS NOT NULL AND {_IS_READY}"""
)
_LOCK = text(
    f"""SELECT id FROM files WHERE account_id = :account_id AND id = ANY(:ids) AND {_IS_READY}
         ORDER BY id FOR SHARE"""
)
_LINK = text(
    """INSERT INTO job_files (account_id, job_id, file_id)
       SELECT :account_id, job_id, file_id
         FROM unnest(CAST(:jobs AS text[]), CAST(:files AS text[])) AS pair (job_id, file_id)
       ON CONFLICT DO NOTHING"""
)
