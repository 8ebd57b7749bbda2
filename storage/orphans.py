"""Which objects of the bucket no row will ever speak of. Owns the question, and neither lists nor deletes."""

from collections.abc import Sequence

from sqlalchemy import text

from storage.database import Database


def orphans_among(db: Database, objects: Sequence[tuple[str, str, str, int]]) -> list[str]:
    """The keys of those that are orphans, of (key, account id, job id, attempt), in one statement.

    An orphan's job is one of this database's. No image points to it, and its attempt does not run: since an
    attempt's objects are written after its claim is committed, and a number is claimed only once, such an
    attempt has ended, and its `finish` would be refused. So the answer stays true after the statement.
    """
    query = text(
        """SELECT object.key
             FROM unnest(CAST(:keys AS text[]), CAST(:accounts AS text[]), CAST(:jobs AS text[]),
                         CAST(:attempts AS integer[])) AS object (key, account_id, job_id, attempt)
             JOIN jobs ON jobs.id = object.job_id AND jobs.account_id = object.account_id
            WHERE NOT (jobs.state = 'running' AND jobs.attempt = object.attempt)
              AND NOT EXISTS (SELECT FROM images WHERE images.object_key = object.key)"""
    )
    names = ("keys", "accounts", "jobs", "attempts")
    columns = {name: [one[place] for one in objects] for place, name in enumerate(names)}
    with db.transaction() as connection:
        return list(connection.scalars(query, columns))


def orphaned_files(db: Database, objects: Sequence[tuple[str, str]]) -> list[str]:
    """The keys of those objects of files that are orphans, of (key, account id), in one statement.

    The account is one of this database's, and no row has the key. A key is drawn for one upload, which writes
    its row long before an object of it is old enough to be asked for: the answer stays true.
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
