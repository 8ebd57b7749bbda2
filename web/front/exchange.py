"""One request and its answer: ASGI messages under the deadlines of the front."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol
from urllib.parse import unquote

from web.front.limits import Limits
from web.front.refusals import BadFraming, HeaderTooLarge, UnknownMethod, UnknownVersion

Scope = Mapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CONNECTION = "calotype.connection"
"""The key of the `Connection` in the extensions of a scope."""

CUT_SHORT = "calotype.cut_short"
"""The key in a disconnect message which says that the client may still read a refusal."""


class ClientGone(Exception):
    """The client has disconnected."""


class Connection(Protocol):
    """What a server can do beyond ASGI."""

    @property
    def is_open(self) -> bool:
        """Whether an answer could still reach a client that sends no more."""

    @property
    def is_stopping(self) -> bool:
        """Whether the process is about to exit, so that this answer is the last one on the connection."""

    async def drained(self) -> None:
        """Wait until everything sent has left this process."""

    def note_waiting(self, is_waiting: bool) -> None:
        """Set whether the server waits for the client to send more, or to read what was sent."""

    def abort(self) -> None:
        """Close the connection now, and drop what is unsent."""


class PlainConnection:
    """The `Connection` under a server without these abilities: no client is ever disconnected."""

    is_open = False
    is_stopping = False

    async def drained(self) -> None:
        """Return at once, because the server cannot tell."""

    def note_waiting(self, is_waiting: bool) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Do nothing."""


Header = tuple[bytes, bytes]


class Exchange:
    """One request as the front sees it, and the means to answer it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self.scope = _with_plain_target(scope)
        self.headers: dict[bytes, bytes] = dict(self.scope["headers"])
        self.connection: Connection = (scope.get("extensions") or {}).get(CONNECTION) or PlainConnection()
        self.more_headers: list[Header] = []
        """The headers that every answer to this request carries, whichever part answers."""
        self.has_begun = False
        self._receive = receive
        self._send = send
        self._limits = limits
        self._is_read = not self.has_body
        self._num_read = 0

    @property
    def content_length(self) -> int | None:
        """The `Content-Length`; None for a chunked body or no body."""
        said = self.headers.get(b"content-length")
        return int(said) if said else None

    @property
    def has_body(self) -> bool:
        """Whether this request has a body (RFC 9112, section 6.3)."""
        return b"content-length" in self.headers or b"transfer-encoding" in self.headers

    def check_header(self) -> None:
        """Raises `HeaderTooLarge`, `BadFraming`, `UnknownMethod` or `UnknownVersion`."""
        fields = self.scope["headers"]
        num_bytes = len(self.scope["raw_path"]) + len(self.scope["query_string"])
        num_bytes += sum(len(name) + len(value) + 4 for name, value in fields)
        if num_bytes > self._limits.max_header_bytes or len(fields) > self._limits.max_headers:
            most = f"{self._limits.max_headers} fields or {self._limits.max_header_bytes} bytes"
            raise HeaderTooLarge(f"the header has more than {most}")
        if b"transfer-encoding" in self.headers and b"content-length" in self.headers:
            raise BadFraming("Content-Length and Transfer-Encoding exclude each other")
        if b"transfer-encoding" in self.headers and self.scope["http_version"] == "1.0":
            raise BadFraming("HTTP/1.0 has no Transfer-Encoding")
        if not self.scope["http_version"].startswith("1."):
            raise UnknownVersion(f"HTTP/{self.scope['http_version']} is not supported; use HTTP/1.1")
        method = self.scope["method"]
        if method != method.upper():
            # h11 and werkzeug would disagree whether a "head" request has a body.
            raise UnknownMethod("names of methods are in upper case (RFC 9110, section 9.1)")
        if not self.scope["raw_path"].startswith(b"/") and (method, self.scope["raw_path"]) != (
            "OPTIONS",
            b"*",
        ):
            raise BadFraming("the target of the request is neither a path nor an http address")

    async def receive(self) -> tuple[bytes, bool]:
        """Return the next bytes of the body and whether more follow. Raises `ClientGone` or `BadFraming`."""
        message = await self._receive()
        if message.get(CUT_SHORT):
            raise BadFraming("the connection ended before the body did: it is shorter than its length")
        if message["type"] != "http.request":
            raise ClientGone
        piece, more = message.get("body", b""), message.get("more_body", False)
        self._num_read += len(piece)
        self._is_read = not more
        return piece, more

    async def begin(self, status: int, headers: list[Header]) -> None:
        """Send the status and the header."""
        self.has_begun = True
        said = [*headers, *self.more_headers]
        if self._ends_connection() and (b"connection", b"close") not in said:
            said.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": status, "headers": said})

    async def send(self, piece: bytes, *, more: bool) -> None:
        """Send a piece of the body; raises `ClientGone` if it has not left within its deadline."""
        self.connection.note_waiting(True)
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                await self._send({"type": "http.response.body", "body": piece, "more_body": more})
                await self.connection.drained()
        except TimeoutError:
            await self.cut()
            raise ClientGone from None
        self.connection.note_waiting(False)

    async def cut(self) -> None:
        """Close the connection through the server."""
        self.connection.abort()
        await asyncio.sleep(0)

    def _ends_connection(self) -> bool:
        """Whether no further request can follow on this connection; the answer then says so.

        An answer may be sent before the body was read. A short rest of the body is read and discarded, and
        the connection continues. A client that sent `Expect` may send the body or not.
        """
        if self.connection.is_stopping:
            return True
        if self._is_read:
            return False
        if self.content_length is None or b"expect" in self.headers:
            return True
        return self.content_length - self._num_read > self._limits.max_drained_bytes


def _with_plain_target(scope: Scope) -> Scope:
    """Rewrite the scope of a request in absolute form to the form with the path alone.

    The host of the address takes precedence over the header `Host` (RFC 9112, section 3.2.2).
    """
    target: bytes = scope["raw_path"]
    if not target.lower().startswith((b"http://", b"https://")):
        return scope
    host, _, path = target.partition(b"//")[2].partition(b"/")
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    return {
        **scope,
        "raw_path": b"/" + path,
        "path": unquote("/" + path.decode("ascii")),
        "headers": [(b"host", host), *headers],
    }
