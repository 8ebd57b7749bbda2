"""CORS (Fetch standard): which pages of other origins may read answers.

A setting names the origins; it knows no route. Cookies are never accepted across origins: there is no
`Access-Control-Allow-Credentials`, and keys travel in `Authorization`.
"""

from collections.abc import Collection

from web.front.exchange import Exchange, Header

ANY = "*"
PREFLIGHT_SECONDS = 7200
"""The longest time for which Chromium caches the answer to a preflight."""
METHODS = b"GET, HEAD, POST, DELETE, OPTIONS"
SENT_HEADERS = b"Authorization, Content-Type, Idempotency-Key, Prefer, X-Request-ID, *"
"""The headers that a page may send. `*` stands for any header except `Authorization`."""
READ_HEADERS = (
    b"Allow, Content-Disposition, Idempotent-Replayed, Location, Preference-Applied, Retry-After, "
    b"WWW-Authenticate, X-Request-ID"
)
"""The headers of an answer that a page may read."""


class CrossOrigin:
    """The origins that may read answers, as browsers send them, or `*`; and the paths open to them."""

    def __init__(self, origins: Collection[str] = (), paths: tuple[str, ...] = ()) -> None:
        self._allows_any = ANY in origins
        self._origins = frozenset(origin.encode("ascii") for origin in origins)
        self._paths = paths

    def headers(self, exchange: Exchange) -> list[Header]:
        """Return the CORS headers of the answer to this request."""
        if not self._is_open(exchange):
            return []
        if self._allows_any:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", READ_HEADERS)]
        # A cache must not serve one origin the response to another, or to a request without one.
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
        """Return the additional headers of a preflight's answer; empty if the request is not allowed."""
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
