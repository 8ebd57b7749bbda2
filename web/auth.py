"""Authentication: the account of a request, from its key or its session, before anything else is read.

The API takes a session for reading alone; the pages' own forms draw with it (docs/adr/0016).

The database is asked every time: what was revoked or signed out before a request came opens nothing.
"""

from typing import Any, cast

from flask import g, request

from storage import sessions
from storage.accounts import Principal, authenticate
from storage.database import Database
from web.refusals import Unauthenticated
from web.session import COOKIE

READING = frozenset({"GET", "HEAD"})  # what a session may do in the API


def require_key(db: Database) -> None:
    """Put the request's principal where `account_id` finds it; raises `Unauthenticated`.

    A request that only reads may show a session's cookie instead of a key.
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
    """Refuse a request with a session alone: what it asks for lets its reader do more than read."""
    if request.authorization is None:
        raise _refused("an API key is required here, a session is not enough", "")


def account_of_session(db: Database) -> str | None:
    """The account of the browser's session, noted as the request's principal; nothing without one."""
    principal = principal_of_session(db)
    return None if principal is None else principal.account_id


def principal_of_session(db: Database) -> Principal | None:
    """Whom the browser's session speaks for, noted as the request's principal; nothing without one."""
    cookie = request.cookies.get(COOKIE)
    principal = sessions.principal_of(db, cookie) if cookie else None
    if principal is not None:
        g.principal = principal
    return principal


def principal_of_form(db: Database) -> Principal | None:
    """Whose key came in the form's field `api_key`, noted as the request's principal; or nothing."""
    principal = authenticate(db, request.form.get("api_key", "").strip())
    if principal is not None:
        g.principal = principal
    return principal


def account_id() -> str:
    """The account that the current request speaks for."""
    return cast("Principal", g.principal).account_id


def _refused(detail: str, more: str) -> Unauthenticated:
    return Unauthenticated(detail, headers={"WWW-Authenticate": f'Bearer realm="calotype"{more}'})


SECURITY: list[dict[str, list[Any]]] = [{"api_key": []}]
