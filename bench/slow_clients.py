"""Clients that keep an HTTP server waiting: many connections of one kind, reopened when closed.

They run in a process of their own, so that they take no time from the process that measures.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

DRIP_SECONDS = 0.5
READ_BYTES = 512
RECEIVE_BUFFER_BYTES = 4096
RETRY_SECONDS = 0.5


@dataclass(frozen=True)
class Target:
    """The server, the path for slow readers, and the path for bodies; no path needs a key."""

    port: int
    large_path: str
    body_path: str
    host: str = "127.0.0.1"


class _Line:
    """One open connection."""

    def __init__(self, target: Target, connection: socket.socket) -> None:
        self.target = target
        self._connection = connection
        self._loop = asyncio.get_running_loop()

    async def send(self, text: str) -> None:
        await self._loop.sock_sendall(self._connection, text.encode())

    async def read(self, num_bytes: int) -> bytes:
        found = await self._loop.sock_recv(self._connection, num_bytes)
        if not found:
            raise ConnectionResetError
        return found

    async def hold(self) -> None:
        """Wait until the server closes the connection."""
        while True:
            await self.read(65_536)


async def _silent(line: _Line) -> None:
    await line.hold()


async def _half_header(line: _Line) -> None:
    await line.send(f"GET /healthz HTTP/1.1\r\nHost: {line.target.host}\r\nX-Half:")
    await line.hold()


async def _dripped_header(line: _Line) -> None:
    await line.send(f"GET /healthz HTTP/1.1\r\nHost: {line.target.host}\r\nX-Drip: ")
    while True:
        await line.send("a")
        await asyncio.sleep(DRIP_SECONDS)


def _body_head(line: _Line, num_bytes: int) -> str:
    head = f"POST {line.target.body_path} HTTP/1.1\r\nHost: {line.target.host}\r\n"
    return head + f"Content-Type: application/json\r\nContent-Length: {num_bytes}\r\n\r\n"


async def _half_body(line: _Line) -> None:
    await line.send(_body_head(line, 60_000) + "{" * 30_000)
    await line.hold()


async def _dripped_body(line: _Line) -> None:
    await line.send(_body_head(line, 60_000))
    while True:
        await line.send("{")
        await asyncio.sleep(DRIP_SECONDS)


async def _slow_reader(line: _Line) -> None:
    await line.send(f"GET {line.target.large_path} HTTP/1.1\r\nHost: {line.target.host}\r\n\r\n")
    while True:
        await line.read(READ_BYTES)
        await asyncio.sleep(DRIP_SECONDS)


async def _idle(line: _Line) -> None:
    await line.send(f"GET /healthz HTTP/1.1\r\nHost: {line.target.host}\r\n\r\n")
    await line.hold()


KINDS: dict[str, Callable[[_Line], Coroutine[Any, Any, None]]] = {
    "silent": _silent,
    "half header": _half_header,
    "dripped header": _dripped_header,
    "half body": _half_body,
    "dripped body": _dripped_body,
    "slow reader": _slow_reader,
    "idle keep-alive": _idle,
}


async def seconds_until_cut(target: Target, max_seconds: float) -> dict[str, float | None]:
    """Return after how long the server disconnects a client of each kind; None if it never does."""

    async def wait(kind: str) -> float | None:
        began = time.monotonic()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            connection.connect((target.host, target.port))
            connection.setblocking(False)
            try:
                async with asyncio.timeout(max_seconds):
                    await KINDS[kind](_Line(target, connection))
            except TimeoutError:
                return None
            except OSError:
                pass
        return time.monotonic() - began

    return dict(zip(KINDS, await asyncio.gather(*map(wait, KINDS)), strict=True))


@contextmanager
def slow_clients(kind: str, target: Target, num_clients: int) -> Iterator[None]:
    """Run `num_clients` of a kind while the body runs, which starts when each has connected once."""
    context = get_context("spawn")
    opened, stop = context.Event(), context.Event()
    process = context.Process(target=_run, args=(kind, target, num_clients, opened, stop), daemon=True)
    process.start()
    try:
        opened.wait(30)
        yield
    finally:
        stop.set()
        process.join(10)
        if process.is_alive():
            process.kill()


def _run(kind: str, target: Target, num_clients: int, opened: Any, stop: Any) -> None:
    asyncio.run(_keep_waiting(kind, target, num_clients, opened, stop))


async def _keep_waiting(kind: str, target: Target, num_clients: int, opened: Any, stop: Any) -> None:
    left = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(_one(kind, target, left)) for _ in range(num_clients)]
    for _ in range(num_clients):
        await left.acquire()
    opened.set()
    while not stop.is_set():
        await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()


async def _one(kind: str, target: Target, opened: asyncio.Semaphore) -> None:
    loop = asyncio.get_running_loop()
    is_first = True
    while True:
        with socket.socket() as connection:
            connection.setblocking(False)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            with suppress(OSError):
                async with asyncio.timeout(10):
                    await loop.sock_connect(connection, (target.host, target.port))
                if is_first:
                    is_first = False
                    opened.release()
                await KINDS[kind](_Line(target, connection))
        if is_first:
            is_first = False
            opened.release()
        await asyncio.sleep(RETRY_SECONDS)
