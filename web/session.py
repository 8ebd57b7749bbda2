"""A browser's session as a cookie whose value is a random session id.

Every request asks `storage.sessions` whether the session is valid, so that a sign-out or a revoked key takes
effect in every process. Forms carry a token of the session, which no other site can know. `web.auth` decides
what a session may do.
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
    """Start a new session of this key, set its cookie on the answer, and end the previous session.

    The cookie is SameSite=Strict and HttpOnly.
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
    """End the browser's session, for all copies of its cookie, and delete the cookie.

    Raises `Unavailable` while the database is down: the session stays valid, and the cookie stays.
    """
    session_id = request.cookies.get(COOKIE)
    if session_id is not None:
        sessions.end(db, session_id)
    response.delete_cookie(
        COOKIE, path=path_of("") or "/", httponly=True, samesite="Strict", secure=is_https()
    )


def form_token() -> str:
    """Return the CSRF token of this session: an HMAC-SHA256 (RFC 2104) keyed by the session id.

    It is not stored, and it is valid as long as the session (OWASP, Cross-Site Request Forgery Prevention,
    "HMAC-based token").
    """
    session_id: str = g.get("session_id") or request.cookies.get(COOKIE, "")
    return hmac.new(session_id.encode("utf-8", "surrogateescape"), _TOKEN_OF, hashlib.sha256).hexdigest()


def is_form_token(token: str) -> bool:
    """Whether this is the token of the current request's session; False without a session."""
    given = token.encode("utf-8", "surrogatepass")
    return COOKIE in request.cookies and hmac.compare_digest(given, form_token().encode())
