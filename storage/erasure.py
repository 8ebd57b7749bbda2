"""Deletes images and whole jobs that have ended, for their owners and because of their age.

Functions of the database do it (migration 0026), so that no role may delete a job by itself. The keys of
objects that nothing needs any more are noted in the same transaction (`storage.objects`). An erased job
leaves its id, its account, the digest of its idempotency key and the instant.
"""

import hashlib

from sqlalchemy import text

from storage.database import LONG_SECONDS, Database

MAX_ERASED = 100
"""Jobs that are erased in one transaction because of their age, so that no other waits long for a lock."""


def delete_images(db: Database, account_id: str, job_id: str) -> bool:
    """Mark the images of the account's job as deleted; `False` unless it has ended. Works again and again."""
    rows = db.execute(_DELETE_IMAGES, {"id": job_id}, account_id=account_id, idempotent=True)
    return bool(rows[0].done)


def erase(db: Database, account_id: str, job_id: str) -> bool:
    """Erase the account's job with all that belongs to it; `False` unless it is there and has ended.

    Its pending webhooks are not sent, and input files that no other job names are deleted. What it used and
    cost stays in the sums, and its outcome in the counts of its batch.
    """
    rows = db.execute(_ERASE, {"id": job_id}, account_id=account_id)
    return bool(rows[0].done)


def erase_old(db: Database, lane: str, *, kept_seconds: float, limit: int = MAX_ERASED) -> int:
    """Erase up to `limit` jobs of a lane that ended more than `kept_seconds` ago; returns how many."""
    parameters = {"lane": lane, "kept_seconds": kept_seconds, "limit": limit}
    with db.transaction(seconds=LONG_SECONDS) as connection:
        return int(connection.execute(_ERASE_OLD, parameters).scalar_one())


def key_digest(idempotency_key: str | None) -> str | None:
    """What an erased job keeps of its idempotency key."""
    return None if idempotency_key is None else hashlib.sha256(idempotency_key.encode()).hexdigest()


_DELETE_IMAGES = text("SELECT delete_own_images(:id) AS done")
_ERASE = text("SELECT erase_own_job(:id) AS done")
_ERASE_OLD = text("SELECT erase_old_jobs(:lane, :kept_seconds, :limit) AS num_erased")
