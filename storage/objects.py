"""Which objects of the store rows name, which they need no more, and which no row ever named.

The caller reads, writes and deletes the objects; this module knows their keys alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, text

from storage.database import Database

AT_ONCE = 1000


@dataclass(frozen=True)
class NamedObject:
    """An object by the row that names it; `kind` is `image` or `file`, `sha256` that of its bytes."""

    key: str
    kind: str
    sha256: str
    num_bytes: int
    content_type: str


@dataclass(frozen=True)
class NeedlessObject:
    """An object and the instant since which no row uses it."""

    key: str
    since: datetime


def named_objects(connection: Connection) -> Iterator[NamedObject]:
    """The objects of all images and files that were not deleted, in the order of their keys."""
    last = ""
    while page := connection.execute(_NAMED, {"after": last, "limit": AT_ONCE}).all():
        for row in page:
            yield NamedObject(row.key, row.kind, row.sha256, row.num_bytes, row.content_type)
        last = page[-1].key


def needless_objects(db: Database, *, after: NeedlessObject | None = None) -> list[NeedlessObject]:
    """Up to `AT_ONCE` objects that no row will ever use again, those that follow `after`, oldest first."""
    last = after or NeedlessObject("", datetime.min.replace(tzinfo=UTC))
    parameters = {"key": last.key, "since": last.since, "limit": AT_ONCE}
    rows = db.execute(_NEEDLESS, parameters, idempotent=True)
    return [NeedlessObject(row.object_key, row.since) for row in rows]


def forget_object(db: Database, object_key: str) -> None:
    """Forget the key of an object that was deleted."""
    db.execute(_FORGET, {"key": object_key}, idempotent=True)


def note_missing(db: Database, keys: list[str]) -> int:
    """Note that the objects of these images are missing; returns how many images that are."""
    return len(db.execute(_MISSING, {"keys": keys}))


def orphans_among(db: Database, objects: Sequence[tuple[str, str, str, int]]) -> list[str]:
    """The keys of those objects (key, account id, job id, attempt) that are orphans.

    An orphan's job is in this database, no image points to it, and its attempt is not running; or its job was
    erased. An attempt's objects are written after its claim is committed, and an attempt number is claimed
    only once. So such an attempt has ended, its `finish` would be refused, and the result stays true after
    the statement.
    """
    query = text(
        """SELECT object.key
             FROM unnest(CAST(:keys AS text[]), CAST(:accounts AS text[]), CAST(:jobs AS text[]),
                         CAST(:attempts AS integer[])) AS object (key, account_id, job_id, attempt)
             JOIN jobs ON jobs.id = object.job_id AND jobs.account_id = object.account_id
            WHERE NOT (jobs.state = 'running' AND jobs.attempt = object.attempt)
              AND NOT EXISTS (SELECT FROM images WHERE images.object_key = object.key)
           UNION ALL
           SELECT object.key
             FROM unnest(CAST(:keys AS text[]), CAST(:accounts AS text[]), CAST(:jobs AS text[]))
                  AS object (key, account_id, job_id)
             JOIN erased_jobs ON erased_jobs.job_id = object.job_id
                             AND erased_jobs.account_id = object.account_id"""
    )
    names = ("keys", "accounts", "jobs", "attempts")
    columns = {name: [one[position] for one in objects] for position, name in enumerate(names)}
    with db.transaction() as connection:
        return list(connection.scalars(query, columns))


_NAMED = text(
    """
    SELECT * FROM (
        (SELECT object_key AS key, 'image' AS kind, images.sha256, images.num_bytes,
                'image/' || jobs.output_format AS content_type
           FROM images JOIN jobs ON jobs.id = job_id
          WHERE images.deleted_at IS NULL AND missing_at IS NULL AND object_key > :after
          ORDER BY object_key LIMIT :limit)
        UNION ALL
        (SELECT object_key, 'file', substr(id, 6), num_bytes, media_type FROM files
          WHERE state = 'ready' AND deleted_at IS NULL AND object_key > :after
          ORDER BY object_key LIMIT :limit)) AS named
     ORDER BY key LIMIT :limit
    """
)
_MISSING = text(
    """UPDATE images SET missing_at = clock_timestamp()
        WHERE object_key = ANY(:keys) AND missing_at IS NULL RETURNING object_key"""
)
_NEEDLESS = text(
    """SELECT object_key, since FROM needless_objects
        WHERE (since, object_key) > (:since, :key) ORDER BY since, object_key LIMIT :limit"""
)
_FORGET = text("DELETE FROM needless_objects WHERE object_key = :key")
