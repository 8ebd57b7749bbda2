"""Authentication: finds the account of a request from its key or its session, before anything else is read.

The API accepts a session for reading only; the forms of the pages may also submit jobs (docs/adr/0016).
Every request asks the database, so that a revoked key or an ended session is refused at once.
"""

from typing import Any, cast

from flask import g, request

from storage import sessions
from storage.accounts import Principal, authenticate
from storage.database import Database
from web.refusals import Unauthenticated
from web.session import COOKIE

READING = frozenset({"GET", "HEAD"})  # the methods that a session may use in the API


def require_key(db: Database) -> None:
    """Find the principal of the request and keep it for `account_id` and `key_id`. Raises `Unauthenticated`.

    A request that only reads may send a session cookie instead of a key.
    """
    authorization = request.authorization
    if authorization is None and request.method in READING and account_of_session(db) is not None:
        return
    if authorization is None or authorization.type != "bearer" or not authorization.token:
        raise _refused("an API key is required: Authorization: Bearer calo_…", "")
    principal = authenticate(db, authorization.token)
    if principal is None:
        raise _refused("this API key is not known, or was revoked", ', error="invalid_token"')
    g.principal = principal


def refuse_session() -> None:
    """Refuse a request that has only a session, because its response grants more than read access."""
    if request.authorization is None:
        raise _refused("an API key is required here, a session is not enough", "")


def account_of_session(db: Database) -> str | None:
    """Return the account of the browser's session, or None; keep its principal for the request."""
    principal = principal_of_session(db)
    return None if principal is None else principal.account_id


def principal_of_session(db: Database) -> Principal | None:
    """Return the principal of the browser's session, or None; keep it for the request."""
    cookie = request.cookies.get(COOKIE)
    principal = sessions.principal_of(db, cookie) if cookie else None
    if principal is not None:
        g.principal = principal
    return principal


def principal_of_form(db: Database) -> Principal | None:
    """Return the principal of the key in the form field `api_key`, or None; keep it for the request."""
    principal = authenticate(db, request.form.get("api_key", "").strip())
    if principal is not None:
        g.principal = principal
    return principal


def account_id() -> str:
    """Return the account of the current request."""
    return cast("Principal", g.principal).account_id


def key_id() -> str:
    """Return the key of the current request, or of its session."""
    return cast("Principal", g.principal).key_id


def _refused(detail: str, more: str) -> Unauthenticated:
    return Unauthenticated(detail, headers={"WWW-Authenticate": f'Bearer realm="calotype"{more}'})


SECURITY: list[dict[str, list[Any]]] = [{"api_key": []}]
