"""Calls a WSGI application (PEP 3333) with a complete request and returns its answer as a value.

It knows no socket and no thread: `answer_of` is called in a thread and returns bytes, pieces, or a stream
that the event loop sends.
"""

import io
import sys
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

from werkzeug.exceptions import ServiceUnavailable

WsgiApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes] | AsyncIterable[bytes]]
"""A PEP 3333 application; its answer may also be asynchronous, and is then sent without a thread."""
CLIENT = "calotype.client"
"""The key of the `WaitingClient` in a WSGI environment."""
PIECE_SECONDS = 0.05
"""The time for which small items of a stream are gathered into one piece."""
LOOPBACK = frozenset({"127.0.0.1", "::1"})


@dataclass(frozen=True)
class WaitingClient:
    """What the front offers to a view that waits."""

    hang_up: "Future[None]" = field(default_factory=Future)
    """A future that is done once the client has disconnected or the answer was sent."""
    lent: Callable[[], AbstractContextManager[None]] = nullcontext
    """A context manager that lends the thread's place to other work while its body runs."""


def waiting_client(environ: Mapping[str, Any]) -> WaitingClient:
    """Return the client of this request; under another server, one that never disconnects."""
    client: WaitingClient = environ.get(CLIENT) or WaitingClient()
    return client


@dataclass
class Answer:
    """The answer of the application. The reader of the body must call `close` afterwards, in a thread.

    It is None if the whole body was read: then the application's answer is closed already.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: "bytes | Pieces | AsyncIterator[bytes]"
    close: Callable[[], None] | None


class Pieces:
    """A streamed answer; `next_piece` gathers items that come quickly, and is called in a thread."""

    def __init__(self, first: bytes, items: Iterator[bytes], max_bytes: int) -> None:
        self.first = first
        self._items = items
        self._max_bytes = max_bytes

    def next_piece(self) -> bytes | None:
        """Return some bytes; empty at the end."""
        piece, ended = gather(self._items, self._max_bytes)
        return None if ended and not piece else piece


class UnreadBody(io.RawIOBase):
    """The body of a request that is too large to be read; the view refuses it by its length."""

    def readable(self) -> bool:
        """Return True, as the interface of files requires."""
        return True

    def readinto(self, _buffer: Any) -> int:
        """Raise an error; called only if a key became valid after the front had checked it."""
        raise ServiceUnavailable("the key could not be checked before the body was read; try again")


def environ_of(
    scope: Mapping[str, Any], body: BinaryIO | UnreadBody, content_length: int | None, client: WaitingClient
) -> dict[str, Any]:
    """Build the environment of a request (PEP 3333); bytes are decoded as Latin-1.

    Header names with an underscore are dropped, because they would look like names with a hyphen.
    `X-Forwarded-Proto` is accepted from a proxy on this machine; no other forwarding header is.
    """
    peer, server = scope.get("client") or ("", 0), scope.get("server") or ("", 0)
    environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(scope["raw_path"]).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "REMOTE_ADDR": peer[0],
        "REMOTE_PORT": str(peer[1]),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": body,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        CLIENT: client,
    }
    for name, value in scope["headers"]:
        _add_header(environ, name.decode("latin-1"), value.decode("latin-1"))
    if content_length is not None:
        environ["CONTENT_LENGTH"] = str(content_length)
    if peer[0] in LOOPBACK and environ.get("HTTP_X_FORWARDED_PROTO") == "https":
        environ["wsgi.url_scheme"] = "https"
    return environ


def _add_header(environ: dict[str, Any], name: str, value: str) -> None:
    if "_" in name or name in ("content-length", "transfer-encoding"):
        return
    key = "CONTENT_TYPE" if name == "content-type" else "HTTP_" + name.upper().replace("-", "_")
    separator = "; " if name == "cookie" else ","
    environ[key] = environ[key] + separator + value if key in environ else value


def answer_of(
    app: WsgiApplication, environ: dict[str, Any], *, max_whole_bytes: int, piece_bytes: int
) -> Answer:
    """Call the application, and read its whole answer if its length is known and within the bound."""
    said: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], _error: Any = None) -> None:
        said[:] = [int(status.split(" ", 1)[0]), headers]

    result: Any = app(environ, start_response)
    status, plain = said
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in plain]
    close = getattr(result, "close", lambda: None)
    if hasattr(result, "__aiter__"):
        return Answer(status, headers, aiter(result), close)
    try:
        length = next((int(value) for name, value in headers if name == b"content-length"), None)
        if length is not None and length <= max_whole_bytes:
            body, is_whole = b"".join(result), True
        else:
            items = iter(result)
            body, is_whole = gather(items, piece_bytes)
    except BaseException:
        close()
        raise
    if is_whole:
        close()
        return Answer(status, headers, body, None)
    return Answer(status, headers, Pieces(body, items, piece_bytes), close)


def gather(items: Iterator[bytes], max_bytes: int) -> tuple[bytes, bool]:
    """Return the next items as one piece, and whether they were the last."""
    found: list[bytes] = []
    num_bytes, until = 0, time.monotonic() + PIECE_SECONDS
    while num_bytes < max_bytes and (not found or time.monotonic() < until):
        item = next(items, None)
        if item is None:
            return b"".join(found), True
        found.append(item)
        num_bytes += len(item)
    return b"".join(found), False
