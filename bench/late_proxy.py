"""A TCP proxy on loopback that forwards everything unchanged, and delays each answer of the server.

It knows no HTTP: an answer is what the server sends after the client sent something. It runs in a process of
its own, so that it takes no CPU time from the process that is measured.
"""

import asyncio
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

CHUNK_BYTES = 1 << 16


class LateProxy:
    """Listens on a free port; `late_seconds` is called before each answer."""

    def __init__(
        self,
        host: str,
        port: int,
        late_seconds: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._upstream = (host, port)
        self._late_seconds = late_seconds
        self._sleep = sleep

    async def listen(self) -> asyncio.Server:
        """Start; the server that listens."""
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs_reader, theirs_writer = await asyncio.open_connection(*self._upstream)
        was_asked = asyncio.Event()
        there = asyncio.ensure_future(self._pass_on(reader, theirs_writer, was_asked.set))
        try:
            await self._answer(theirs_reader, writer, was_asked)
        finally:
            there.cancel()
            theirs_writer.close()
            writer.close()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, note: Callable[[], object]
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            note()
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, was_asked: asyncio.Event
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            if was_asked.is_set():
                was_asked.clear()
                late_seconds = self._late_seconds()
                if late_seconds:
                    await self._sleep(late_seconds)
            writer.write(chunk)
            await writer.drain()


def run_proxy(host: str, port: int, late_seconds: Any, ready: Connection) -> None:
    """The body of the proxy's process: send its port, then serve until it is terminated.

    `late_seconds` is a `multiprocessing.Value` of a float, which the parent sets.
    """

    async def serve() -> None:
        server = await LateProxy(host, port, lambda: float(late_seconds.value)).listen()
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())
