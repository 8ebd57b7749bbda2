"""Browser sessions that were opened with an API key. A row stores a digest of the cookie's value.

A session ends when its user signs out, its key is revoked or it expires; every read checks all three, and
nothing is cached between requests. It does not know what a session may do.
"""

import hashlib
import secrets

from sqlalchemy import text

from storage.accounts import Principal
from storage.database import Database

ID_BYTES = 32
MAX_ID_CHARS = 64


def begin(db: Database, key_id: str, *, seconds: float, instead_of: str | None = None) -> str:
    """Insert a session of this key that expires in `seconds`; returns its id, which is not stored.

    `instead_of` is the browser's previous session id; that session ends in the same transaction.
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
    """The principal of a session; `None` if it is unknown, ended or expired, or its key was revoked."""
    if len(session_id) > MAX_ID_CHARS:
        return None
    rows = db.execute(_PRINCIPAL_OF, {"digest": _digest(session_id)}, idempotent=True)
    return Principal(rows[0].account_id, rows[0].key_id) if rows else None


def end(db: Database, session_id: str) -> None:
    """End the session with this id, if there is one; effective in every process once this returns."""
    with db.transaction() as connection:
        connection.execute(_END, {"digest": _digest(session_id)})


def remove_expired(db: Database, *, limit: int = 1000) -> int:
    """Delete up to `limit` expired sessions; returns how many."""
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
