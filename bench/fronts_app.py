"""The small application that every HTTP front serves in `bench.fronts`, and our own front over it.

Five routes in plain WSGI: a probe, a submission that needs a key and a body, a large answer, an event stream,
and a wait. Behind our front the stream and the wait use what it offers; behind others they hold a thread.
"""

import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

from web.front.application import Front
from web.front.connection import Connections
from web.front.limits import Limits
from web.front.server import Server, serve_until_told
from web.front.threads import Threads
from web.front.wsgi import CLIENT, waiting_client

SUBMISSION_SECONDS = 0.02
"""The time that a submission waits for its row, as for Postgres."""
LARGE_ANSWER = b"0123456789abcdef" * 16_384
EVENT_SECONDS = 1.0
KEY = "calo_bench"
StartResponse = Callable[[str, list[tuple[str, str]]], Any]


def application(environ: dict[str, Any], start_response: StartResponse) -> "Iterable[bytes] | Stream":
    """The WSGI application."""
    path = environ["PATH_INFO"]
    if path == "/events":
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return Stream() if CLIENT in environ else _events()
    if path == "/large":
        return _answer(start_response, "200 OK", LARGE_ANSWER)
    if path == "/wait":
        seconds = float(parse_qs(environ["QUERY_STRING"])["seconds"][0])
        with waiting_client(environ).lent():
            time.sleep(seconds)
        return _answer(start_response, "200 OK", b"{}")
    if path == "/submit":
        if environ.get("HTTP_AUTHORIZATION") != f"Bearer {KEY}":
            return _answer(start_response, "401 Unauthorized", b"{}")
        prompt = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        time.sleep(SUBMISSION_SECONDS)
        return _answer(start_response, "202 Accepted", json.dumps(prompt).encode())
    return _answer(start_response, "200 OK", b'{"state": "ok"}')


def _answer(start_response: StartResponse, status: str, body: bytes) -> list[bytes]:
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def event() -> bytes:
    """An event that says when it was sent, on the clock of this machine."""
    return f"data: {time.monotonic()}\n\n".encode()


def _events() -> Iterator[bytes]:
    while True:
        yield event()
        time.sleep(EVENT_SECONDS)


class Stream:
    """The event stream on an event loop."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield events without end."""
        import asyncio

        while True:
            yield event()
            await asyncio.sleep(EVENT_SECONDS)


def make_front() -> Front:
    """The ASGI application of the web, over these routes."""
    limits = Limits()
    return Front(application, limits, Threads(limits))


front = make_front()


def serve(port: int) -> None:
    """Serve these routes as the web serves its own."""
    limits = Limits()
    connections = Connections(limits.max_connections)
    serve_until_told(Server(front, "127.0.0.1", port, limits=limits, connections=connections))


if __name__ == "__main__":
    serve(int(sys.argv[1]))
