"""One request and its answer on their way: ASGI's messages under the deadlines of the front."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol

from web.front.limits import Limits
from web.front.refusals import BadFraming, HeaderTooLarge

Scope = Mapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CONNECTION = "calotype.connection"
"""The key among a scope's extensions under which a `Connection` stands."""


class ClientGone(Exception):
    """Nobody is there to be answered."""


class Connection(Protocol):
    """What a server may offer beyond ASGI."""

    async def drained(self) -> None:
        """Return when everything that was sent has left this process."""

    def note_waiting(self, is_waiting: bool) -> None:
        """Whether the next step is the client's: to send more, or to take what was sent."""

    def abort(self) -> None:
        """End the connection now, whatever is still to be sent."""


class PlainConnection:
    """Of a server that offers nothing: nobody is cut off."""

    async def drained(self) -> None:
        """At once: nobody can say."""

    def note_waiting(self, is_waiting: bool) -> None:
        """In vain."""

    def abort(self) -> None:
        """In vain."""


class Exchange:
    """What the front knows of one request, and how it answers."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.connection: Connection = (scope.get("extensions") or {}).get(CONNECTION) or PlainConnection()
        self.has_begun = False
        self._receive = receive
        self._send = send
        self._limits = limits

    @property
    def content_length(self) -> int | None:
        """As the client said it; nothing for a chunked body, or none."""
        said = self.headers.get(b"content-length")
        return int(said) if said else None

    @property
    def has_body(self) -> bool:
        """Whether a body belongs to this request (RFC 9112, section 6.3)."""
        return b"content-length" in self.headers or b"transfer-encoding" in self.headers

    def check_header(self) -> None:
        """Raises `HeaderTooLarge` or `BadFraming`."""
        fields = self.scope["headers"]
        num_bytes = len(self.scope["raw_path"]) + len(self.scope["query_string"])
        num_bytes += sum(len(name) + len(value) + 4 for name, value in fields)
        if num_bytes > self._limits.max_header_bytes or len(fields) > self._limits.max_headers:
            most = f"{self._limits.max_headers} fields or {self._limits.max_header_bytes} bytes"
            raise HeaderTooLarge(f"the header has more than {most}")
        if b"transfer-encoding" in self.headers and b"content-length" in self.headers:
            raise BadFraming("Content-Length and Transfer-Encoding exclude each other")

    async def receive(self) -> tuple[bytes, bool]:
        """The next bytes of the body, and whether there are more; raises `ClientGone`."""
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientGone
        return message.get("body", b""), message.get("more_body", False)

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the status and the header."""
        self.has_begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

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
        """End the connection, and let the server notice."""
        self.connection.abort()
        await asyncio.sleep(0)
