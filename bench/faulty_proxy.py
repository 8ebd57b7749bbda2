"""A TCP proxy on loopback that fails on request, in the ways in which servers and networks fail.

It owns the connections between clients and one server, and knows no protocol. It runs in a process of its own
(`proxied`), so that it takes no time from the processes that are measured.
"""

import asyncio
import multiprocessing
import random
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from multiprocessing.connection import Connection

CHUNK_BYTES = 1 << 16
SLOW_SECONDS = 2.0
RESET_AFTER_SECONDS = (0.05, 1.0)
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with a time of 0: closing sends RST (socket(7))


class Fault(StrEnum):
    """What the proxy does to its connections."""

    NONE = "none"
    """Everything passes."""
    DEAD = "dead"
    """Connections are reset, and new ones are refused."""
    HUNG = "hung"
    """Connections are accepted and nothing passes, in either direction; afterwards all of it does."""
    SLOW = "slow"
    """Every chunk arrives `slow_seconds` late, each way, in its order and beside the others."""
    RESETS = "resets"
    """Each connection is reset a moment after it was made."""
    HALF_OPEN = "half-open"
    """Connections are never answered and never closed, not even afterwards; new ones wait."""


class FaultyProxy:
    """Listens on a free port, for one server. Use it within one event loop."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        slow_seconds: float = SLOW_SECONDS,
        reset_after_seconds: Callable[[], float] = lambda: random.uniform(*RESET_AFTER_SECONDS),
    ) -> None:
        self._server = (host, port)
        self._slow_seconds = slow_seconds
        self._reset_after_seconds = reset_after_seconds
        self._fault = Fault.NONE
        self._flowing = asyncio.Event()
        self._links: set[_Link] = set()
        self._lost: list[_Link] = []
        self._listener: asyncio.Server | None = None
        self._deaf: list[socket.socket] = []
        # Bound as long as the proxy exists, so that no other process takes the port while nothing listens.
        self._holder = _bound(0)

    @property
    def port(self) -> int:
        """The address for clients."""
        return int(self._holder.getsockname()[1])

    async def start(self) -> None:
        """Listen, and forward everything."""
        await self.suffer(Fault.NONE)

    async def suffer(self, fault: Fault) -> None:
        """Switch to this fault."""
        self._fault = fault
        self._stop_listening()
        if fault is Fault.DEAD:
            self._reset_all()
        elif fault is Fault.HALF_OPEN:
            self._lose_all()
        elif fault is Fault.RESETS:
            for link in self._links:
                self._reset_later(link)
        if fault is Fault.HALF_OPEN:
            await self._listen_deaf()
        elif fault is not Fault.DEAD:
            await self._listen()
        if fault is Fault.HUNG:
            self._flowing.clear()
        else:
            self._flowing.set()

    def close(self) -> None:
        """Reset every connection, the lost ones too, and free the port."""
        self._stop_listening()
        self._reset_all()
        for link in self._lost:
            link.reset()
        self._holder.close()

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, sock=_bound(self.port))

    async def _listen_deaf(self) -> None:
        """Fill the accept queue: the kernel drops the SYN of later clients."""
        listener = _bound(self.port)
        listener.listen(0)
        self._deaf = [listener]
        loop = asyncio.get_running_loop()
        while True:
            filler = socket.socket()
            filler.setblocking(False)
            self._deaf.append(filler)
            try:
                async with asyncio.timeout(0.1):
                    await loop.sock_connect(filler, ("127.0.0.1", self.port))
            except TimeoutError:
                return

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        while self._deaf:
            self._deaf.pop().close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(reader, writer, self._late_seconds, self._flowing)
        self._links.add(link)
        if self._fault is Fault.RESETS:
            self._reset_later(link)
        try:
            await link.run(*self._server)
        except (OSError, asyncio.CancelledError):
            if not link.is_lost:
                link.reset()
        finally:
            self._links.discard(link)

    def _late_seconds(self) -> float:
        return self._slow_seconds if self._fault is Fault.SLOW else 0.0

    def _reset_later(self, link: "_Link") -> None:
        def reset() -> None:
            if self._fault is Fault.RESETS:
                link.reset()

        asyncio.get_running_loop().call_later(self._reset_after_seconds(), reset)

    def _reset_all(self) -> None:
        for link in self._links:
            link.reset()

    def _lose_all(self) -> None:
        for link in self._links:
            link.lose()
        self._lost += self._links
        self._links.clear()


class _Link:
    """A client's connection and its connection to the server. Create it within its task."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        late_seconds: Callable[[], float],
        flowing: asyncio.Event,
    ) -> None:
        self._late_seconds = late_seconds
        self._flowing = flowing
        self._streams = [(reader, writer)]
        self._task = asyncio.current_task()
        self.is_lost = False

    async def run(self, host: str, port: int) -> None:
        """Connect to the server and forward in both directions until both have ended. Raises `OSError`."""
        await self._flowing.wait()
        self._streams.append(await asyncio.open_connection(host, port))
        (from_client, to_client), (from_server, to_server) = self._streams
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_on(from_client, to_server))
                both.create_task(self._pass_on(from_server, to_client))
        except* OSError as errors:
            raise ConnectionResetError from errors
        to_client.close()
        to_server.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward until the end of the stream. Chunks are read as they arrive, so that delays overlap."""
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def read() -> None:
            chunk = b"?"
            while chunk:
                chunk = await reader.read(CHUNK_BYTES)
                chunks.put_nowait((loop.time() + self._late_seconds(), chunk))

        async def write() -> None:
            chunk = b"?"
            while chunk:
                due, chunk = await chunks.get()
                await asyncio.sleep(due - loop.time())
                await self._flowing.wait()
                writer.write(chunk)
                await writer.drain()
            writer.write_eof()

        async with asyncio.TaskGroup() as both:
            both.create_task(read())
            both.create_task(write())

    def reset(self) -> None:
        """Reset both connections."""
        for _, writer in self._streams:
            with suppress(OSError):  # closed already
                stream = writer.get_extra_info("socket")
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            writer.transport.abort()
        self._end()

    def lose(self) -> None:
        """Read nothing more from either side, and close neither."""
        self.is_lost = True
        self._end()

    def _end(self) -> None:
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()


class Proxies:
    """The proxies of another process, by the names of their servers."""

    def __init__(self, ports: Mapping[str, int], pipe: Connection) -> None:
        self.ports = ports
        self._pipe = pipe

    def suffer(self, name: str, fault: Fault) -> None:
        """Switch that proxy to this fault; return once it has switched."""
        self._pipe.send((name, fault))
        self._pipe.recv()


@contextmanager
def proxied(servers: Mapping[str, int]) -> Iterator[Proxies]:
    """One proxy for each server on loopback, while the body runs; `servers` are ports by names."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(dict(servers), theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Proxies(ours.recv(), ours)
    finally:
        ours.close()  # which ends it
        process.join()


def _run(servers: Mapping[str, int], pipe: Connection) -> None:
    async def serve() -> None:
        proxies = {name: FaultyProxy("127.0.0.1", port) for name, port in servers.items()}
        for proxy in proxies.values():
            await proxy.start()
        pipe.send({name: proxy.port for name, proxy in proxies.items()})
        while True:
            try:
                name, fault = await asyncio.to_thread(pipe.recv)
            except EOFError:
                break
            await proxies[name].suffer(fault)
            pipe.send(fault)
        for proxy in proxies.values():
            proxy.close()

    asyncio.run(serve())


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound
