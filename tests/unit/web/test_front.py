"""S34: the bounds of the front, one request at a time: bodies, keys, threads, readers, and who hangs up."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.front_threads import threads_of
from tests.on_a_loop import on_a_loop
from web.front.application import Front
from web.front.cross_origin import CrossOrigin
from web.front.exchange import CONNECTION
from web.front.held import Held
from web.front.limits import Limits
from web.front.refusals import Busy
from web.front.threads import Threads
from web.front.wsgi import CLIENT

SOON = 60.0
LIMITS = Limits(body_seconds=SOON, answer_seconds=SOON, max_body_bytes=1000, piece_bytes=100)
GONE = {"type": "http.disconnect"}


@dataclass
class Client:
    """A client of one request, and its connection: what it sends, what it got, whether it was cut."""

    sent: list[dict[str, Any]] = field(default_factory=list)
    answer: list[MutableMapping[str, Any]] = field(default_factory=list)
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    was_cut: asyncio.Event = field(default_factory=asyncio.Event)
    num_asked: int = 0
    is_waiting: bool = False
    is_stopping: bool = False

    def __post_init__(self) -> None:
        self.reads.set()

    async def receive(self) -> dict[str, Any]:
        self.num_asked += 1
        if self.sent:
            return self.sent.pop(0)
        await self.was_cut.wait()
        return GONE

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.answer.append(message)

    async def drained(self) -> None:
        await self.reads.wait()

    def note_waiting(self, is_waiting: bool) -> None:
        self.is_waiting = is_waiting

    def abort(self) -> None:
        self.was_cut.set()

    def hang_up(self) -> None:
        self.was_cut.set()

    @property
    def is_open(self) -> bool:
        return not self.was_cut.is_set()

    @property
    def status(self) -> int:
        return int(self.answer[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.answer[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.answer[1:])

    async def ask(self, front: Front, path: str = "/", method: str = "GET", **headers: str) -> None:
        fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": fields,
            "client": ("10.0.0.1", 5000),
            "server": ("10.0.0.2", 8000),
            "extensions": {CONNECTION: self},
        }
        async with asyncio.timeout(2 * SOON):
            await front(scope, self.receive, self.send)


def piece(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


Start = Callable[[str, list[tuple[str, str]]], Any]


def echo(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    """The application of most tests: it answers with the body's length, as it was said and as it was read."""
    said = environ.get("CONTENT_LENGTH")
    if int(said or 0) > (5000 if environ.get("HTTP_AUTHORIZATION") == "Bearer known" else 1000):
        start("413 Content Too Large", [("Content-Length", "0")])
        return [b""]
    body = f"{said} {len(environ['wsgi.input'].read())}".encode()
    start("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def front_of(app: Any, limits: Limits = LIMITS, threads: Threads | None = None, **named: Any) -> Front:
    return Front(app, limits, threads or threads_of(2, 2), **named)


@on_a_loop
async def test_S34_a_body_in_pieces_is_whole_before_it_takes_a_thread() -> None:
    client = Client([piece(b"a" * 300, True), piece(b"", True), piece(b"b" * 300)])
    await client.ask(front_of(echo), method="POST", transfer_encoding="chunked")
    assert (client.status, client.body) == (200, b"600 600")


@on_a_loop
async def test_S34_a_body_that_is_said_to_be_too_large_is_not_read_and_the_view_refuses_it() -> None:
    client = Client([piece(b"a" * 9000)])
    await client.ask(front_of(echo), method="POST", content_length="9000")
    assert (client.status, client.num_asked) == (413, 0)


@on_a_loop
async def test_S34_only_who_is_welcome_sends_more_than_anybody_may() -> None:
    asked: list[tuple[str, str, str]] = []

    def max_upload(method: str, path: str, authorization: str) -> int:
        asked.append((method, path, authorization))
        return 4000 if authorization == "Bearer known" else 1000

    front = front_of(echo, max_upload=max_upload)
    client = Client([piece(b"a" * 900, True), piece(b"a" * 900, True), piece(b"a" * 900)])
    await client.ask(front, "/up", "POST", transfer_encoding="chunked", authorization="Bearer known")
    assert (client.status, client.body) == (200, b"2700 2700")
    at_once = Client([piece(b"a" * 2700)])
    await at_once.ask(front, "/up", "POST", transfer_encoding="chunked", authorization="Bearer known")
    assert (at_once.status, at_once.body) == (200, b"2700 2700")
    stranger = Client([piece(b"a" * 900, True), piece(b"a" * 900, True), piece(b"a" * 900)])
    await stranger.ask(front, "/up", "POST", transfer_encoding="chunked", authorization="Bearer nobody's")
    assert (stranger.status, stranger.num_asked) == (413, 2)
    assert asked[0] == ("POST", "/up", "Bearer known")


@on_a_loop
async def test_S34_a_body_that_is_not_whole_in_time_is_refused_and_its_connection_ends() -> None:
    front = front_of(echo, replace(LIMITS, body_seconds=0.02))
    client = Client([piece(b"a", True)])
    await client.ask(front, method="POST", content_length="10")
    assert (client.status, client.headers[b"connection"]) == (408, b"close")
    assert json.loads(client.body)["code"] == "request_timeout"


@on_a_loop
async def test_S34_beyond_what_bodies_may_take_together_the_slowest_is_cut() -> None:
    front = front_of(echo, replace(LIMITS, max_held_body_bytes=1500))
    slow, other = Client([piece(b"a" * 900, True)]), Client([piece(b"b" * 900, True)])
    asking = [asyncio.create_task(one.ask(front, "/", "POST", content_length="950")) for one in (slow, other)]
    await asyncio.wait_for(slow.was_cut.wait(), SOON)
    assert not other.was_cut.is_set()
    other.hang_up()
    await asyncio.gather(*asking)
    assert slow.answer == other.answer == []


@on_a_loop
async def test_S34_an_upload_counts_until_its_view_has_ended_and_one_beside_it_is_told_to_try_again() -> None:
    go, entered = threading.Event(), threading.Event()

    def hold(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        entered.set()
        go.wait(SOON)
        return echo(environ, start)

    limits = replace(LIMITS, max_held_upload_bytes=6000)
    front = front_of(hold, limits, max_upload=lambda *_: 5000)
    known = {"path": "/up", "method": "POST", "authorization": "Bearer known"}
    first = Client([piece(b"a" * 4000)])
    asking = asyncio.create_task(first.ask(front, content_length="4000", **known))
    while not entered.is_set():
        await asyncio.sleep(0.002)
    declared = Client([piece(b"b" * 3000)])
    await declared.ask(front, content_length="3000", **known)
    assert (declared.status, declared.num_asked) == (503, 0)
    in_pieces = Client([piece(b"b" * 1100, True) for _ in range(3)])
    await in_pieces.ask(front, transfer_encoding="chunked", **known)
    for refused in (declared, in_pieces):
        assert (refused.status, json.loads(refused.body)["code"]) == (503, "busy")
        assert not refused.was_cut.is_set()
    go.set()
    small = Client([piece(b"b" * 1500)])
    await small.ask(front, content_length="1500", **known)
    await asking
    assert (first.body, small.body) == (b"4000 4000", b"1500 1500")
    last = Client([piece(b"b" * 5000)])
    await last.ask(front, content_length="5000", **known)
    assert (last.body, front.num_cut) == (b"5000 5000", 0)


@on_a_loop
async def test_S34_an_upload_that_fills_the_disk_is_answered_so_and_is_no_longer_counted() -> None:
    front = front_of(echo, max_upload=lambda *_: 5000)
    known = {"path": "/up", "method": "POST", "authorization": "Bearer known"}
    client = Client([piece(b"a" * 4000)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("web.front.bodies.TemporaryFile", lambda: open("/dev/full", "w+b"))  # noqa: SIM115
        with capture_logs() as logs:
            await client.ask(front, content_length="4000", **known)
    assert (client.status, client.headers[b"retry-after"]) == (503, b"2")
    assert json.loads(client.body)["code"] == "disk_full"
    assert [(line["event"], line["log_level"]) for line in logs] == [("temporary_space_full", "error")]
    again = Client([piece(b"a" * 4000)])
    await again.ask(front, content_length="4000", **known)
    assert again.body == b"4000 4000"


@on_a_loop
async def test_S34_beyond_a_full_queue_the_answer_is_that_we_are_busy() -> None:
    go = threading.Event()

    def hold(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        go.wait(SOON)
        return echo(environ, start)

    threads = threads_of(1, 0)
    front, first, second = front_of(hold, threads=threads), Client(), Client()
    holding = asyncio.create_task(first.ask(front))
    while not threads.num_running:
        await asyncio.sleep(0.002)
    await second.ask(front)
    assert (second.status, second.headers[b"retry-after"]) == (503, b"2")
    assert json.loads(second.body)["code"] == "busy"
    assert b"connection" not in second.headers
    go.set()
    await holding
    assert first.status == 200


@on_a_loop
async def test_S3_readiness_is_answered_while_all_threads_wait_for_what_hangs() -> None:
    go = threading.Event()

    def hang(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/readyz":
            go.wait(SOON)
        return echo(environ, start)

    threads = threads_of(1, 4)
    front, waiting, ready = front_of(hang, threads=threads), Client(), Client()
    asking = asyncio.create_task(waiting.ask(front))
    while not threads.num_running:
        await asyncio.sleep(0.002)
    await ready.ask(front, "/readyz")
    assert ready.status == 200
    assert not waiting.answer
    go.set()
    await asking


@on_a_loop
async def test_S34_health_is_answered_while_threads_are_taken_and_not_once_they_are_stuck() -> None:
    go, now = threading.Event(), [0.0]
    threads = threads_of(1, 4, lambda: now[0])
    front = front_of(lambda *_: go.wait(SOON), threads=threads)
    holding = asyncio.create_task(threads.run(lambda: go.wait(SOON)))
    for seconds, status in ((30, 200), (40, 503)):
        while not threads.num_running:
            await asyncio.sleep(0.002)
        now[0] += seconds
        client = Client()
        await client.ask(front, "/healthz")
        assert client.status == status
    go.set()
    await holding


@on_a_loop
async def test_S34_a_reader_who_takes_nothing_in_time_is_cut() -> None:
    def large(_environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [("Content-Length", "1000")])
        return [b"a" * 1000]

    client = Client()
    client.reads.clear()
    threads = threads_of(1, 0)
    await client.ask(front_of(large, replace(LIMITS, answer_seconds=0.02), threads))
    assert client.was_cut.is_set()
    assert len(client.body) == LIMITS.piece_bytes


@on_a_loop
async def test_S34_a_slow_reader_holds_no_thread() -> None:
    closed = threading.Event()

    class Rows:
        def __iter__(self) -> Iterable[bytes]:
            yield from (b"x" * 100 for _ in range(5))

        def close(self) -> None:
            closed.set()

    def stream(_environ: dict[str, Any], start: Start) -> Any:
        start("200 OK", [])
        return Rows()

    threads = threads_of(1, 0)
    client = Client()
    client.reads.clear()
    reading = asyncio.create_task(client.ask(front_of(stream, threads=threads)))
    while len(client.answer) < 2 or threads.num_running:
        await asyncio.sleep(0.002)
    assert await threads.run(lambda: "free") == "free"
    client.reads.set()
    await reading
    assert client.body == b"x" * 500
    assert closed.is_set()


@on_a_loop
async def test_S34_beyond_what_pieces_may_take_together_the_slowest_reader_is_cut() -> None:
    def in_pieces(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/csv")])
        return (bytes(100) for _ in range(3))

    front = front_of(in_pieces, replace(LIMITS, max_held_answer_bytes=150))
    slow, quick = Client(), Client()
    slow.reads.clear()
    async with asyncio.timeout(SOON), asyncio.TaskGroup() as group:
        group.create_task(slow.ask(front))
        while not slow.body:
            await asyncio.sleep(0)
        await quick.ask(front)
        assert slow.was_cut.is_set()
        slow.reads.set()
    assert quick.body == bytes(300)
    assert not quick.was_cut.is_set()
    assert front.num_cut == 1


@pytest.mark.parametrize("ends", ["client", "process"])
@on_a_loop
async def test_S34_a_stream_holds_no_thread_and_ends_with_its_client_or_the_process(ends: str) -> None:
    closed = asyncio.Event()

    async def events() -> AsyncIterator[bytes]:
        try:
            for number in range(1000):
                yield b"data: %d\n\n" % number
                await asyncio.sleep(SOON if number else 0)
        finally:
            closed.set()

    def stream(_environ: dict[str, Any], start: Start) -> AsyncIterator[bytes]:
        start("200 OK", [("Content-Type", "text/event-stream")])
        return events()

    threads, client = threads_of(1, 0), Client()
    front = front_of(stream, threads=threads)
    asking = asyncio.create_task(client.ask(front))
    while len(client.answer) < 3:
        await asyncio.sleep(0.002)
    assert threads.num_running == 0
    front.stop() if ends == "process" else client.hang_up()
    await asking
    assert closed.is_set()
    assert client.body == b"data: 0\n\ndata: 1\n\n"


@on_a_loop
async def test_S34_a_view_that_waits_learns_that_its_client_has_gone() -> None:
    waits, learned = threading.Event(), threading.Event()

    def wait(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        gone = threading.Event()
        environ[CLIENT].hang_up.add_done_callback(lambda _: gone.set())
        waits.set()
        if gone.wait(SOON):
            learned.set()
        return echo(environ, start)

    client = Client()
    asking = asyncio.create_task(client.ask(front_of(wait)))
    while not waits.is_set():
        await asyncio.sleep(0.002)
    client.hang_up()
    await asking
    assert learned.is_set()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x": "a" * 40_000}, 431),
        ({f"x_{number}": "" for number in range(101)}, 431),
        ({"content_length": "3", "transfer_encoding": "chunked"}, 400),
    ],
)
@on_a_loop
async def test_S34_a_header_that_is_too_large_or_ambiguous_is_refused(
    headers: dict[str, str], status: int
) -> None:
    client = Client()
    await client.ask(front_of(echo), **headers)
    assert (client.status, client.headers[b"connection"]) == (status, b"close")


def test_S34_who_moves_on_is_no_longer_the_slowest() -> None:
    cut: list[str] = []
    held = Held(100)
    with (
        held.holding(lambda: cut.append("first")) as first,
        held.holding(lambda: cut.append("second")) as second,
    ):
        first.grow(50)
        second.grow(50)
        first.shrink(10)
        first.grow(20)
        assert (cut, held.num_bytes) == (["second"], 60)
    assert (held.num_bytes, held.num_cut) == (0, 1)


@pytest.mark.parametrize(
    ("headers", "ends"),
    [
        ({"content_length": "9000"}, False),
        ({"content_length": "16777216"}, False),
        ({"content_length": "16777217"}, True),
        ({"content_length": "9000", "expect": "100-continue"}, True),
        ({"transfer_encoding": "chunked"}, True),
        ({"content_length": "10"}, False),
        ({"content_length": "10", "expect": "100-continue"}, False),
        ({}, False),
    ],
)
@on_a_loop
async def test_S4_an_answer_says_whether_the_rest_of_the_body_will_be_read(
    headers: dict[str, str], ends: bool
) -> None:
    sent = [piece(b"a" * 10)] if headers.get("content_length") == "10" else [piece(b"a" * 1100, True)]
    client = Client(sent if headers else [])
    await client.ask(front_of(echo), method="POST", **headers)
    assert (client.headers.get(b"connection") == b"close") == ends


@on_a_loop
async def test_S4_whoever_is_told_that_we_are_busy_is_told_whether_the_connection_goes_on() -> None:
    def max_upload(*_: str) -> int:
        raise Busy("every thread is taken")

    for headers, ends in (({"content_length": "9000"}, False), ({"transfer_encoding": "chunked"}, True)):
        client = Client([piece(b"a" * 1100, True)])
        await client.ask(front_of(echo, max_upload=max_upload), method="POST", **headers)
        assert client.status == 503
        assert (client.headers.get(b"connection") == b"close") == ends


@on_a_loop
async def test_S4_while_the_process_stops_every_answer_is_the_last_of_its_connection() -> None:
    client = Client(is_stopping=True)
    await client.ask(front_of(echo))
    assert (client.status, client.headers[b"connection"]) == (200, b"close")


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        ("http://host:80/v1/jobs", "/v1/jobs", "host:80"),
        ("HTTPS://host/v1/%C3%A9", "/v1/\u00e9", "host"),
        ("http://host", "/", "host"),
        ("/v1/jobs", "/v1/jobs", "said"),
    ],
)
@on_a_loop
async def test_S4_a_target_that_is_a_whole_address_names_path_and_host(
    target: str, path: str, host: str
) -> None:
    def show(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        body = f"{environ['HTTP_HOST']} {environ['PATH_INFO']}".encode("latin-1")
        start("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    client = Client()
    await client.ask(front_of(show), target, host="said")
    assert client.body.decode() == f"{host} {path}"


@on_a_loop
async def test_S13_a_client_that_waits_for_a_place_in_vain_can_read_so_from_another_origin() -> None:
    go = threading.Event()
    threads = threads_of(1, 0)
    shared = CrossOrigin(["https://app.example.com"], ("/v1/",))
    front = front_of(lambda *_: go.wait(SOON), threads=threads, cross_origin=shared)
    holding = asyncio.create_task(threads.run(lambda: go.wait(SOON)))
    while not threads.num_running:
        await asyncio.sleep(0.002)
    client = Client()
    await client.ask(front, "/v1/jobs", origin="https://app.example.com")
    assert client.status == 503
    assert client.headers[b"access-control-allow-origin"] == b"https://app.example.com"
    go.set()
    await holding
