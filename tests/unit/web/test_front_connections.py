"""S34: beyond so many connections one is cut: who has kept us waiting longest, and never one being served."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from tests.on_a_loop import on_a_loop
from web.front.connection import GRACE_SECONDS, Connection, Connections, GentleTransport
from web.front.limits import Limits
from web.front.refusals import Busy, HeaderTooLarge, RefusalLog
from web.front.server import Server


class Line:
    """Stands in for a connection."""

    def __init__(self) -> None:
        self.was_cut = False

    def cut(self) -> None:
        self.was_cut = True


def opened(connections: Connections, *, is_waiting: bool = True) -> Any:
    line = cast("Connection", Line())
    connections.add(line)
    connections.note(line, is_waiting=is_waiting)
    return line


def test_S34_the_one_that_has_waited_longest_makes_room() -> None:
    connections = Connections(max_connections=3)
    first, second, served = (opened(connections) for _ in range(3))
    connections.note(served, is_waiting=False)
    connections.note(first, is_waiting=False)
    connections.note(first, is_waiting=True)  # it was served a moment ago, after the second had come
    newest = opened(connections)
    assert [line.was_cut for line in (first, second, served, newest)] == [False, True, False, False]


def test_S34_where_all_are_being_served_the_newest_makes_room() -> None:
    connections = Connections(max_connections=1)
    served = opened(connections, is_waiting=False)
    newest = opened(connections, is_waiting=False)
    assert [served.was_cut, newest.was_cut] == [False, True]
    connections.remove(newest)
    assert len(connections) == 1


def test_S34_a_burst_of_new_ones_has_as_many_others_cut() -> None:
    connections = Connections(max_connections=4)
    first = [opened(connections) for _ in range(4)]
    # All in one turn of the event loop: no socket is closed yet.
    burst = [opened(connections) for _ in range(3)]
    assert [line.was_cut for line in first] == [True, True, True, False]
    assert not any(line.was_cut for line in burst)
    assert len(connections) == 4


def test_S34_a_new_one_has_a_moment_for_its_request_while_all_others_are_being_served() -> None:
    now = [100.0]
    connections = Connections(max_connections=10, clock=lambda: now[0])
    served = [opened(connections, is_waiting=False) for _ in range(8)]
    asking, next_one = opened(connections), opened(connections)
    assert not asking.was_cut
    assert len(connections) == 10
    connections.note(asking, is_waiting=False)
    connections.remove(served.pop())
    now[0] += GRACE_SECONDS
    opened(connections)
    assert next_one.was_cut, "who has let a moment pass makes room before all of it is taken"
    assert not any(line.was_cut for line in (asking, *served))


class Wire:
    """Stands in for a connection's transport, and keeps what each call sends."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def is_closing(self) -> bool:
        return False


@on_a_loop
async def test_a_header_and_its_body_leave_together_and_a_lone_header_at_once() -> None:
    wire = Wire()
    gentle = GentleTransport(cast("Any", wire), cast("Any", SimpleNamespace(loop=asyncio.get_running_loop())))
    for part in (b"header", b"", b"body"):
        gentle.write(part)
    assert wire.sent == []
    gentle.flush()
    gentle.write(b"lone header")
    await asyncio.sleep(0)
    assert wire.sent == [b"headerbody", b"lone header"]


@on_a_loop
async def test_S34_a_thousand_refusals_are_one_line_of_the_log() -> None:
    refusals = RefusalLog(log_seconds=0)
    with capture_logs() as logs:
        for _ in range(1000):
            refusals.note(Busy("every thread is taken"))
        refusals.note(HeaderTooLarge("too large"))
        assert logs == []
        async with asyncio.timeout(30):
            while not logs:
                await asyncio.sleep(0)
    assert [(line["code"], line["count"]) for line in logs] == [
        ("busy", 1000),
        ("request_header_fields_too_large", 1),
    ]


@on_a_loop
async def test_S34_a_request_that_is_no_http_is_counted_and_not_logged_by_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits, connections = Limits(), Connections(max_connections=4)
    connections.refusals = RefusalLog(log_seconds=0)
    server = Server(cast("Any", None), "127.0.0.1", 0, limits=limits, connections=connections)
    config, state = server.config, server.server_state
    config.load()
    listener = await asyncio.get_running_loop().create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),  # type: ignore[call-arg]
        "127.0.0.1",
        0,
    )
    with capture_logs() as logs:
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        writer.write(b"nonsense\r\n\r\n")
        async with asyncio.timeout(30):
            assert b" 400 " in await reader.readline()
            while not logs:
                await asyncio.sleep(0)
        writer.close()
        listener.close()
    assert [(line["code"], line["count"]) for line in logs] == [("bad_request", 1)]
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []
