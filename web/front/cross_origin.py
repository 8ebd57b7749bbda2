"""Which pages of other origins may read our answers: CORS, as the Fetch standard has it.

It is handed the origins and the paths that a setting opens, and knows no route. A cookie never opens
anything: there is no `Access-Control-Allow-Credentials`, and keys travel in `Authorization`.
"""

from collections.abc import Collection

from web.front.exchange import Exchange, Header

ANY = "*"
PREFLIGHT_SECONDS = 7200
"""The longest that Chromium keeps the answer to a preflight."""
METHODS = b"GET, HEAD, POST, DELETE, OPTIONS"
SENT_HEADERS = b"Authorization, Content-Type, Idempotency-Key, Prefer, X-Request-ID, *"
"""What a page may send. `*` stands for any other, but not for `Authorization`."""
READ_HEADERS = (
    b"Allow, Content-Disposition, Idempotent-Replayed, Location, Preference-Applied, Retry-After, "
    b"WWW-Authenticate, X-Request-ID"
)
"""What a page may read of an answer besides its status and its body."""


class CrossOrigin:
    """The origins that may read, each as browsers send it, or `*` for all; and the paths that they may."""

    def __init__(self, origins: Collection[str] = (), paths: tuple[str, ...] = ()) -> None:
        self._allows_any = ANY in origins
        self._origins = frozenset(origin.encode("ascii") for origin in origins)
        self._paths = paths

    def headers(self, exchange: Exchange) -> list[Header]:
        """What every answer to this request says, whoever may read it."""
        if not self._is_open(exchange):
            return []
        if self._allows_any:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", READ_HEADERS)]
        # A cache must not give one origin what was answered to another, or to none.
        vary = (b"vary", b"Origin")
        origin = exchange.headers.get(b"origin", b"")
        if origin not in self._origins:
            return [vary]
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", READ_HEADERS),
            vary,
        ]

    def preflight(self, exchange: Exchange) -> list[Header]:
        """What a browser that asks before it sends is told besides; empty where it is not told yes."""
        headers = exchange.headers
        if exchange.scope["method"] != "OPTIONS" or b"access-control-request-method" not in headers:
            return []
        if not self._is_open(exchange) or not (
            self._allows_any or headers.get(b"origin", b"") in self._origins
        ):
            return []
        return [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", SENT_HEADERS),
            (b"access-control-max-age", str(PREFLIGHT_SECONDS).encode()),
        ]

    def _is_open(self, exchange: Exchange) -> bool:
        return bool(self._origins) and exchange.scope["path"].startswith(self._paths)
