"""A browser's session: who gave a key here lately. It reads and never writes, and dies with its key.

The cookie holds the key's id and the moment, signed, so that every web process reads it and a restart
ends none; the API key itself is not in it. Signing out forgets the cookie and nothing more: there is no
list of sessions, which is why one ends by itself after `SESSION_SECONDS`.
"""

import hashlib
import time
from collections.abc import Callable

from itsdangerous import BadSignature, URLSafeSerializer
from werkzeug.wrappers import Response

from storage.accounts import Principal, principal_of_key
from storage.database import Database

COOKIE = "calotype_session"
SESSION_SECONDS = 12 * 3600


class Sessions:
    """Writes and reads the cookie's value.

    `secret` is one that every web process has and that no dump of the database holds; what is signed with
    it is kept apart from its other uses by a derived key.
    """

    def __init__(self, db: Database, secret: str, *, clock: Callable[[], float] = time.time) -> None:
        self._db = db
        self._clock = clock
        self._signer = URLSafeSerializer(
            secret,
            salt="calotype session",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )

    def begin(self, principal: Principal) -> str:
        """The cookie's value for whoever has just shown this key."""
        return str(self._signer.dumps([principal.key_id, int(self._clock())]))

    def principal_of(self, value: str) -> Principal | None:
        """Whom a cookie speaks for, or nothing: forged, too old, or its key was revoked."""
        try:
            key_id, began_at = self._signer.loads(value)
        except BadSignature:
            return None
        if self._clock() - began_at > SESSION_SECONDS:
            return None
        return principal_of_key(self._db, key_id)


def keep(response: Response, value: str, *, secure: bool) -> None:
    """Give the browser the cookie: for this site's own requests, out of the reach of scripts."""
    response.set_cookie(
        COOKIE, value, max_age=SESSION_SECONDS, path="/", httponly=True, samesite="Strict", secure=secure
    )


def forget(response: Response, *, secure: bool) -> None:
    """Take the cookie back."""
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="Strict", secure=secure)
