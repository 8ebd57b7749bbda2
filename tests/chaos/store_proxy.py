"""A proxy before the object store that spoils a share of the requests, each in one of several ways.

It forwards one request a connection: it asks both ends to close it afterwards, so that it need not know how
long an answer is. It runs in a process of its own.
"""

import asyncio
import multiprocessing
import random
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Literal, get_args

Spoiling = Literal["refused", "reset", "answer lost", "stalled"]
SPOILINGS: tuple[Spoiling, ...] = get_args(Spoiling)
"""503 at once; reset after half of the request; carried out, and reset instead of answered; answered late."""
STALL_SECONDS = 2.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with a time of 0: closing sends RST (socket(7))
_REFUSAL = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_BYTES = 65536


class StoreProxy:
    """The proxy of another process; `share` of the requests are spoilt from now on."""

    def __init__(self, port: int, pipe: Connection) -> None:
        self.port = port
        self._pipe = pipe

    def spoil(self, share: float) -> None:
        """Spoil this share of the requests."""
        self._pipe.send(share)
        self._pipe.recv()

    def counts(self) -> Counter[str]:
        """How many requests were forwarded and spoilt in each way."""
        self._pipe.send(None)
        found: Counter[str] = self._pipe.recv()
        return found


@contextmanager
def store_proxied(port: int, seed: int) -> Iterator[StoreProxy]:
    """A proxy before the store on that port of loopback, while the body runs."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(port, seed, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield StoreProxy(ours.recv(), ours)
    finally:
        ours.close()  # which ends it
        process.join()


def _run(port: int, seed: int, pipe: Connection) -> None:
    asyncio.run(_Server(port, seed, pipe).serve())


class _Server:
    def __init__(self, port: int, seed: int, pipe: Connection) -> None:
        self._port, self._pipe = port, pipe
        self._rng = random.Random(seed)
        self._share = 0.0
        self._counts: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None] | None] = set()  # asyncio itself keeps no task alive

    async def serve(self) -> None:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self._pipe.send(server.sockets[0].getsockname()[1])
        with suppress(EOFError):
            while True:
                share = await asyncio.to_thread(self._pipe.recv)
                if share is not None:
                    self._share = share
                self._pipe.send(self._counts)
        server.close()

    async def _answer(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        with suppress(OSError, EOFError, asyncio.IncompleteReadError):
            head = await client.readuntil(b"\r\n\r\n")
            is_spoilt = self._rng.random() < self._share
            spoiling = self._rng.choice(SPOILINGS) if is_spoilt else None
            self._counts[spoiling or "forwarded"] += 1
            await self._forward(head, client, to_client, spoiling)
        to_client.close()
        self._tasks.discard(task)

    async def _forward(
        self,
        head: bytes,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        spoiling: Spoiling | None,
    ) -> None:
        if spoiling == "refused":
            to_client.write(_REFUSAL)
            await to_client.drain()
            return
        store, to_store = await asyncio.open_connection("127.0.0.1", self._port)
        if spoiling == "reset":
            to_store.write(head + await _half_of_body(head, client, to_client))
            await to_store.drain()
            _reset(to_store)
            _reset(to_client)
            return
        body = asyncio.create_task(_pass_on(client, to_store))
        try:
            to_store.write(_closing(head))
            if spoiling == "stalled":
                await asyncio.sleep(STALL_SECONDS)
            if spoiling == "answer lost":
                await store.read()
                _reset(to_client)
                return
            await _pass_on(store, to_client)
        finally:
            body.cancel()
            to_store.close()


async def _half_of_body(head: bytes, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> bytes:
    """The first half of the body that the head announces, if any."""
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n") if b": " in line)
    if b"expect" in fields:
        to_client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return await client.readexactly(int(fields.get(b"content-length", 0)) // 2)


def _closing(head: bytes) -> bytes:
    """The head of a request after which the server closes the connection."""
    lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n"


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while chunk := await source.read(_BYTES):
        target.write(chunk)
        await target.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
