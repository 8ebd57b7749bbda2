"""The front as an ASGI application (version 3): reads the request, runs the view, sends the answer.

It reads the whole body on the event loop, calls the WSGI application in a thread, and sends the answer from
the event loop. It knows no route and no row. It runs under any ASGI server, but only `web.front.connection`
can close the connections of slow clients.
"""

import asyncio
import contextvars
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from storage.identifiers import new_id
from web.front.bodies import Bodies
from web.front.cross_origin import CrossOrigin
from web.front.exchange import ClientGone, Exchange, Header, Receive, Scope, Send
from web.front.held import Held
from web.front.limits import Limits
from web.front.refusals import Busy, RefusalLog, Refused, own_headers, problem
from web.front.threads import Threads
from web.front.wsgi import (
    Answer,
    Pieces,
    UnreadBody,
    WaitingClient,
    WsgiApplication,
    answer_of,
    environ_of,
)

MaxUpload = Callable[[str, str, str], int]
"""Maps method, path and `Authorization` to the largest body that the request may have; called in a thread."""

LIVENESS_PATH = "/healthz"
READINESS_PATH = "/readyz"
"""The path with its own threads, so that it can report a hang while all other threads hang."""


class Front:
    """Serves a WSGI application to any number of slow clients with few threads."""

    def __init__(
        self,
        app: WsgiApplication,
        limits: Limits,
        threads: Threads,
        max_upload: MaxUpload | None = None,
        cross_origin: CrossOrigin | None = None,
    ) -> None:
        self._app = app
        self._limits = limits
        self._threads = threads
        self._readiness_threads = Threads(replace(limits, num_threads=limits.num_readiness_threads))
        self._max_upload = max_upload
        self._cross_origin = cross_origin or CrossOrigin()
        self._bodies = Bodies(limits, self._max_upload_of)
        self._answers = Held(limits.max_held_answer_bytes)
        self._refusals = RefusalLog()
        self._streams: set[asyncio.Task[Any]] = set()
        self._is_stopping = False

    @property
    def num_cut(self) -> int:
        """The number of connections that were closed to bound memory."""
        return self._bodies.num_cut + self._answers.num_cut

    @property
    def is_stuck(self) -> bool:
        """Whether the process counts as hung."""
        return self._threads.stuck_seconds() > self._limits.stuck_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise NotImplementedError(f"{scope['type']} is not served")  # such as `lifespan`
        exchange = Exchange(scope, receive, send, self._limits)
        exchange.more_headers = self._cross_origin.headers(exchange)
        try:
            exchange.check_header()
            preflight = self._cross_origin.preflight(exchange)
            if preflight or exchange.scope["raw_path"] == b"*":
                await _answer_empty(exchange, preflight)
            elif exchange.scope["path"] == LIVENESS_PATH and exchange.scope["method"] in ("GET", "HEAD"):
                await self._show_liveness(exchange)
            else:
                await self._serve(exchange)
        except ClientGone:
            pass
        except Refused as refused:
            self._refusals.note(refused)
            await _refuse(exchange, refused)

    def stop(self) -> None:
        """End every stream, because the process is about to exit. Call it on the event loop."""
        self._is_stopping = True
        for task in self._streams:
            task.cancel()

    async def _show_liveness(self, exchange: Exchange) -> None:
        if self.is_stuck:
            raise Busy(f"no thread has started or finished work for {self._limits.stuck_seconds:.0f} s")
        body = json.dumps({"state": "ok"}).encode()
        headers = own_headers(b"application/json", body)
        await exchange.begin(200, [*headers, (b"x-request-id", new_id("req").encode())])
        await exchange.send(body, more=False)

    async def _serve(self, exchange: Exchange) -> None:
        body, length = await self._bodies.read(exchange)
        threads = self._readiness_threads if exchange.scope["path"] == READINESS_PATH else self._threads
        client = WaitingClient(lent=threads.lent)
        environ = environ_of(exchange.scope, body, length, client)
        # An unread body must not be read merely to find its end.
        is_read = not isinstance(body, UnreadBody)
        watch = asyncio.create_task(_notice_hang_up(exchange, client)) if is_read else None
        context = (
            contextvars.Context()
        )  # one context for the request, in whichever threads its pieces are made
        size, piece = self._limits.max_whole_answer_bytes, self._limits.piece_bytes

        def call() -> Answer:
            with body:  # no answer that follows in pieces reads it
                return answer_of(self._app, environ, max_whole_bytes=size, piece_bytes=piece)

        try:
            with self._bodies.in_use(body, length):
                answer = await threads.run(partial(context.run, call))
            try:
                await self._send_answer(exchange, answer, client, context)
            finally:
                if answer.close is not None:
                    await threads.run(partial(context.run, answer.close), begun=True)
        finally:
            client.hang_up.cancel()
            if watch is not None:
                watch.cancel()

    async def _send_answer(
        self, exchange: Exchange, answer: Answer, client: WaitingClient, context: contextvars.Context
    ) -> None:
        await exchange.begin(answer.status, answer.headers)
        if isinstance(answer.body, bytes):
            await self._send_whole(exchange, answer.body)
        elif isinstance(answer.body, Pieces):
            await self._send_pieces(exchange, answer.body, client, context)
        else:
            await self._send_stream(exchange, answer.body, client)

    async def _send_whole(self, exchange: Exchange, body: bytes) -> None:
        size = self._limits.piece_bytes
        with self._answers.holding(exchange.connection.abort) as holding:
            holding.grow(len(body))
            for start in range(0, max(len(body), 1), size):
                piece = body[start : start + size]
                await exchange.send(piece, more=start + size < len(body))
                holding.shrink(len(piece))

    async def _send_pieces(
        self, exchange: Exchange, pieces: Pieces, client: WaitingClient, context: contextvars.Context
    ) -> None:
        """Make each piece in a thread, and release the thread while a slow client reads the piece."""
        piece: bytes | None = pieces.first
        while piece is not None:
            with self._answers.holding(exchange.connection.abort) as holding:
                holding.grow(len(piece))
                await exchange.send(piece, more=True)
            if client.hang_up.done() and not exchange.connection.is_open:
                raise ClientGone
            piece = await self._threads.run(partial(context.run, pieces.next_piece), begun=True)
        await exchange.send(b"", more=False)

    async def _send_stream(
        self, exchange: Exchange, stream: AsyncIterator[bytes], client: WaitingClient
    ) -> None:
        """Send a stream from the event loop until the stream, the client or this process ends."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        client.hang_up.add_done_callback(lambda _: loop.call_soon(task.cancel))
        self._streams.add(task)
        try:
            async for piece in stream:
                await exchange.send(piece, more=True)
        except asyncio.CancelledError:
            if not self._is_stopping and not client.hang_up.done():
                raise
            task.uncancel()
        finally:
            self._streams.discard(task)
            if hasattr(stream, "aclose"):
                await stream.aclose()
        await exchange.send(b"", more=False)

    async def _max_upload_of(self, exchange: Exchange) -> int:
        if self._max_upload is None:
            return self._limits.max_body_bytes
        authorization = exchange.headers.get(b"authorization", b"").decode("latin-1")
        ask = partial(self._max_upload, exchange.scope["method"], exchange.scope["path"], authorization)
        return await self._threads.run(ask)


async def _notice_hang_up(exchange: Exchange, client: WaitingClient) -> None:
    try:
        while True:
            await exchange.receive()
    except ClientGone:
        if not client.hang_up.done():
            client.hang_up.set_result(None)


async def _answer_empty(exchange: Exchange, headers: list[Header]) -> None:
    """Answer an `OPTIONS` that reaches no view: a preflight, or `OPTIONS *` (RFC 9110, section 9.3.7)."""
    await exchange.begin(204, [*headers, (b"x-request-id", new_id("req").encode())])
    await exchange.send(b"", more=False)


async def _refuse(exchange: Exchange, refused: Refused) -> None:
    if exchange.has_begun:
        await exchange.cut()
        return
    headers, body = problem(refused)
    try:
        await exchange.begin(refused.status, headers)
        await exchange.send(body, more=False)
    except ClientGone:
        pass
