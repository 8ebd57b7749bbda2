"""The faulty proxy fails as servers and networks do: each of its faults, seen from a client's socket."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress

import pytest

from bench.faulty_proxy import Fault, FaultyProxy

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
SHORT_SECONDS = 0.3
"""How long a test listens to somebody who says nothing."""


class Clients:
    """Clients of a proxy before a server that sends back what it hears."""

    def __init__(self, tried: FaultyProxy) -> None:
        self._tried = tried
        self._streams: list[Stream] = []

    async def connect(self) -> Stream:
        self._streams.append(await asyncio.open_connection("127.0.0.1", self._tried.port))
        return self._streams[-1]

    async def close(self) -> None:
        for _, writer in self._streams:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def proxy(**options: object) -> AsyncIterator[tuple[FaultyProxy, Clients]]:
    ends: list[asyncio.Future[None]] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(asyncio.get_running_loop().create_future())
        with suppress(ConnectionError):
            while chunk := await reader.read(1 << 16):
                writer.write(chunk)
                await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        ends.pop().set_result(None)

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    tried = FaultyProxy("127.0.0.1", server.sockets[0].getsockname()[1], **options)  # type: ignore[arg-type]
    await tried.start()
    clients = Clients(tried)
    try:
        yield tried, clients
    finally:
        tried.close()
        await clients.close()
        while ends:
            await ends[-1]
        server.close()
        await server.wait_closed()


async def say(stream: Stream, text: bytes) -> bytes:
    """Sends it; what comes back within five seconds."""
    stream[1].write(text)
    return await asyncio.wait_for(stream[0].readexactly(len(text)), 5)


async def is_silent(waiting: Awaitable[object]) -> bool:
    """Whether nothing came of it within a short time."""
    try:
        await asyncio.wait_for(waiting, SHORT_SECONDS)
    except TimeoutError:
        return True
    return False


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(test())


def test_without_a_fault_everything_passes_both_ways_and_so_does_the_end() -> None:
    async def test() -> None:
        async with proxy() as (_tried, clients):
            stream = await clients.connect()
            assert await say(stream, b"x" * 300_000) == b"x" * 300_000
            stream[1].write_eof()
            assert await asyncio.wait_for(stream[0].read(), 5) == b""

    run(test)


def test_dead_resets_what_is_connected_and_refuses_who_connects_until_it_is_back() -> None:
    async def test() -> None:
        async with proxy() as (tried, clients):
            stream = await clients.connect()
            assert await say(stream, b"hello") == b"hello"
            await tried.suffer(Fault.DEAD)
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(stream[0].read(), 5)
            with pytest.raises(ConnectionRefusedError):
                await clients.connect()
            await tried.suffer(Fault.NONE)
            assert await say(await clients.connect(), b"again") == b"again"

    run(test)


def test_hung_accepts_and_forwards_nothing_and_afterwards_all_of_it() -> None:
    async def test() -> None:
        async with proxy() as (tried, clients):
            old = await clients.connect()
            await say(old, b"hello")
            await tried.suffer(Fault.HUNG)
            new = await clients.connect()
            for stream in (old, new):
                stream[1].write(b"anybody?")
                assert await is_silent(stream[0].read(1))
            await tried.suffer(Fault.NONE)
            for stream in (old, new):
                assert await asyncio.wait_for(stream[0].readexactly(8), 5) == b"anybody?"

    run(test)


def test_slow_delays_every_chunk_each_way_beside_the_others_and_keeps_their_order() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        async with proxy(slow_seconds=0.2) as (tried, clients):
            await tried.suffer(Fault.SLOW)
            stream = await clients.connect()
            begun_at = loop.time()
            for number in range(10):
                stream[1].write(b"%d" % number)
                await asyncio.sleep(0.02)
            assert await asyncio.wait_for(stream[0].readexactly(10), 5) == b"0123456789"
            seconds = loop.time() - begun_at
            assert 0.4 <= seconds < 2.0, "each way once, and not once for each chunk"

    run(test)


def test_resets_ends_each_connection_a_moment_after_it_was_made() -> None:
    async def test() -> None:
        async with proxy(reset_after_seconds=lambda: 0.1) as (tried, clients):
            old = await clients.connect()
            await say(old, b"hello")
            await tried.suffer(Fault.RESETS)
            new = await clients.connect()
            assert await say(new, b"a moment") == b"a moment"
            for stream in (old, new):
                with pytest.raises(ConnectionResetError):
                    await asyncio.wait_for(stream[0].read(), 5)
            await tried.suffer(Fault.NONE)
            assert not await is_silent(say(await clients.connect(), b"stays"))

    run(test)


def test_half_open_loses_what_is_connected_for_good_and_lets_nobody_connect_meanwhile() -> None:
    async def test() -> None:
        async with proxy() as (tried, clients):
            old = await clients.connect()
            await say(old, b"hello")
            await tried.suffer(Fault.HALF_OPEN)
            assert await is_silent(say(old, b"anybody?"))
            assert await is_silent(clients.connect()), "a SYN is answered by nobody"
            await tried.suffer(Fault.NONE)
            assert await say(await clients.connect(), b"new") == b"new"
            assert await is_silent(old[0].read(1)), "neither answered nor closed"

    run(test)


def test_a_proxy_keeps_its_port_while_nothing_listens_on_it() -> None:
    async def test() -> None:
        async with proxy() as (tried, _clients):
            await tried.suffer(Fault.DEAD)
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", tried.port))

    run(test)
