"""Sessions: who gave a key in a browser lately. A row holds a digest of the cookie's value, not the value.

A session ends with its sign-out, its key or its time, whichever is first, and each read asks for all three:
nothing of it is remembered between requests. It does not know what a session may do.
"""

import hashlib
import secrets

from sqlalchemy import text

from storage.accounts import Principal
from storage.database import Database

ID_BYTES = 32
MAX_ID_CHARS = 64


def begin(db: Database, key_id: str, *, seconds: float, instead_of: str | None = None) -> str:
    """A new session of this key for `seconds`; its id, which is nowhere else.

    `instead_of` is the id that the browser had before; that session ends in the same transaction.
    """
    session_id = secrets.token_urlsafe(ID_BYTES)
    insert = text(
        """INSERT INTO sessions (digest, key_id, expires_at)
           VALUES (:digest, :key_id, clock_timestamp() + make_interval(secs => :seconds))"""
    )
    with db.transaction() as connection:
        if instead_of is not None:
            connection.execute(_END, {"digest": _digest(instead_of)})
        connection.execute(insert, {"digest": _digest(session_id), "key_id": key_id, "seconds": seconds})
    return session_id


def principal_of(db: Database, session_id: str) -> Principal | None:
    """Whom a session speaks for, or nothing: unknown, ended, too old, or its key was revoked."""
    if len(session_id) > MAX_ID_CHARS:
        return None
    with db.transaction() as connection:
        row = connection.execute(_PRINCIPAL_OF, {"digest": _digest(session_id)}).one_or_none()
    return None if row is None else Principal(row.account_id, row.key_id)


def end(db: Database, session_id: str) -> None:
    """End a session, if there is one of this id: once this has returned, it reads nothing anywhere."""
    with db.transaction() as connection:
        connection.execute(_END, {"digest": _digest(session_id)})


def remove_expired(db: Database, *, limit: int = 1000) -> int:
    """Delete up to `limit` sessions whose time is over; how many."""
    statement = text(
        """DELETE FROM sessions WHERE digest IN (
               SELECT digest FROM sessions WHERE expires_at < statement_timestamp()
                ORDER BY expires_at LIMIT :limit FOR UPDATE SKIP LOCKED)"""
    )
    with db.transaction() as connection:
        return connection.execute(statement, {"limit": limit}).rowcount


def _digest(session_id: str) -> str:
    return hashlib.sha256(session_id.encode("utf-8", "surrogateescape")).hexdigest()


_END = text("UPDATE sessions SET ended_at = clock_timestamp() WHERE digest = :digest AND ended_at IS NULL")
_PRINCIPAL_OF = text("SELECT account_id, key_id FROM principal_of_session(:digest)")
