"""A browser's session as a cookie: its value is the session's id, random and nothing else.

It reads and never writes. Every request asks `storage.sessions` whether it still lives, so a sign-out, a
revoked key or a restart of a web process changes nothing that another process would not see.
"""

from flask import request
from werkzeug.wrappers import Response

from storage import sessions
from storage.accounts import Principal
from storage.database import Database

COOKIE = "calotype_session"
SESSION_SECONDS = 12 * 3600


def begin(db: Database, principal: Principal, response: Response, *, secure: bool) -> None:
    """Give the browser a new session of this key, and end the one that it had.

    The cookie is for this site's own requests and out of the reach of scripts.
    """
    session_id = sessions.begin(
        db, principal.key_id, seconds=SESSION_SECONDS, instead_of=request.cookies.get(COOKIE)
    )
    response.set_cookie(
        COOKIE,
        session_id,
        max_age=SESSION_SECONDS,
        path="/",
        httponly=True,
        samesite="Strict",
        secure=secure,
    )


def end(db: Database, response: Response, *, secure: bool) -> None:
    """End the browser's session, copies of its cookie included, and take the cookie back.

    Raises `Unavailable` while the database is away: the session lives, and the cookie stays to end it with.
    """
    session_id = request.cookies.get(COOKIE)
    if session_id is not None:
        sessions.end(db, session_id)
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="Strict", secure=secure)
