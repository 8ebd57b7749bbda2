"""A browser's session as a cookie: its value is the session's id, random and nothing else.

Every request asks `storage.sessions` whether it still lives, so a sign-out, a revoked key or a restart of a
web process changes nothing that another process would not see. The pages' forms carry a token of the session,
which no other site can know; it does not know what a session may do.
"""

import hashlib
import hmac

from flask import after_this_request, g, request
from werkzeug.wrappers import Response

from storage import sessions
from storage.accounts import Principal
from storage.database import Database
from web.wiring import is_https, path_of

COOKIE = "calotype_session"
TOKEN_FIELD = "token"
SESSION_SECONDS = 12 * 3600
_TOKEN_OF = b"calotype: the forms of this session"


def begin(db: Database, principal: Principal) -> None:
    """Give the browser a new session of this key with the answer, and end the one that it had.

    The cookie is for this site's own requests and out of the reach of scripts.
    """
    session_id = sessions.begin(
        db, principal.key_id, seconds=SESSION_SECONDS, instead_of=request.cookies.get(COOKIE)
    )
    g.session_id = session_id

    @after_this_request
    def set_cookie(response: Response) -> Response:
        response.set_cookie(
            COOKIE,
            session_id,
            max_age=SESSION_SECONDS,
            path=path_of("") or "/",
            httponly=True,
            samesite="Strict",
            secure=is_https(),
        )
        return response


def end(db: Database, response: Response) -> None:
    """End the browser's session, copies of its cookie included, and take the cookie back.

    Raises `Unavailable` while the database is away: the session lives, and the cookie stays to end it with.
    """
    session_id = request.cookies.get(COOKIE)
    if session_id is not None:
        sessions.end(db, session_id)
    response.delete_cookie(
        COOKIE, path=path_of("") or "/", httponly=True, samesite="Strict", secure=is_https()
    )


def form_token() -> str:
    """What a form of this session carries: HMAC-SHA256 under the session's id, which it does not tell.

    Nothing is kept of it. It ends with the session, and one of another session is another (RFC 2104; the
    pattern is OWASP's, Cross-Site Request Forgery Prevention, "HMAC-based token").
    """
    session_id: str = g.get("session_id") or request.cookies.get(COOKIE, "")
    return hmac.new(session_id.encode("utf-8", "surrogateescape"), _TOKEN_OF, hashlib.sha256).hexdigest()


def is_form_token(token: str) -> bool:
    """Whether this came from a form of the running request's own session; without a session nothing does."""
    given = token.encode("utf-8", "surrogatepass")
    return COOKIE in request.cookies and hmac.compare_digest(given, form_token().encode())
