"""Who is asking: the key of a request, or a session that only reads, before anything else is looked at."""

import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from flask import g, request

from storage.accounts import Principal, authenticate
from storage.database import Database
from web.refusals import Unauthenticated
from web.session import COOKIE, Sessions

CACHE_SECONDS = 5.0  # how long a revoked key may still work in a process that has seen it
MAX_CACHED_KEYS = 4096
READING = frozenset({"GET", "HEAD"})  # what a session may do


class KeyRing:
    """Authenticates keys; remembers good ones for a moment, by digest and never in plaintext."""

    def __init__(
        self, db: Database, sessions: Sessions, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.sessions = sessions
        self._db = db
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[bytes, tuple[Principal, float]] = {}

    def principal_of(self, plaintext: str) -> Principal | None:
        """Whose key this is, or nothing."""
        digest = hashlib.sha256(plaintext.encode("utf-8", "surrogateescape")).digest()
        with self._lock:
            principal, until = self._known.get(digest, (None, 0.0))
        if principal is not None and self._clock() < until:
            return principal
        found = authenticate(self._db, plaintext)
        with self._lock:
            self._known.pop(digest, None)
            if found is not None:
                if len(self._known) >= MAX_CACHED_KEYS:
                    self._known.pop(next(iter(self._known)))
                self._known[digest] = (found, self._clock() + CACHE_SECONDS)
        return found


def require_key(keys: KeyRing) -> None:
    """Put the request's principal where `account_id` finds it; raises `Unauthenticated`.

    A request that only reads may show a session's cookie instead of a key.
    """
    authorization = request.authorization
    if authorization is None and request.method in READING and account_of_session(keys) is not None:
        return
    if authorization is None or authorization.type != "bearer" or not authorization.token:
        raise _refused("an API key is required: Authorization: Bearer calo_…", "")
    principal = keys.principal_of(authorization.token)
    if principal is None:
        raise _refused("this API key is not known, or was revoked", ', error="invalid_token"')
    g.principal = principal


def refuse_session() -> None:
    """Refuse a request with a session alone: what it asks for lets its reader do more than read."""
    if request.authorization is None:
        raise _refused("an API key is required here, a session is not enough", "")


def account_of_session(keys: KeyRing) -> str | None:
    """The account of the browser's session, noted as the request's principal; nothing without one."""
    cookie = request.cookies.get(COOKIE)
    principal = keys.sessions.principal_of(cookie) if cookie else None
    if principal is None:
        return None
    g.principal = principal
    return principal.account_id


def principal_of_form(keys: KeyRing) -> Principal | None:
    """Whose key came in the form's field `api_key`, noted as the request's principal; or nothing."""
    principal = keys.principal_of(request.form.get("api_key", "").strip())
    if principal is not None:
        g.principal = principal
    return principal


def account_id() -> str:
    """The account that the current request speaks for."""
    return cast("Principal", g.principal).account_id


def _refused(detail: str, more: str) -> Unauthenticated:
    return Unauthenticated(detail, headers={"WWW-Authenticate": f'Bearer realm="calotype"{more}'})


SECURITY: list[dict[str, list[Any]]] = [{"api_key": []}]
