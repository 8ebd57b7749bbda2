"""S4: an answer that comes before the body was read arrives, and says whether the connection goes on.

Against the process as it is shipped, with bodies of which a part is still on its way when the answer comes.
"""

import http.client
import json
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing

import pytest

from local.endpoints import Embedded
from local.ports import choose_ports
from tests.served import Served, served

SOON = 60.0
SIZES = (100_000, 3_000_000, 100_000_000)
PIECE = b" " * 250_000
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return choose_ports(["metrics"])["metrics"]


@pytest.fixture(scope="module")
def server(migrated: Embedded, metrics_port: int) -> Iterator[Served]:
    with served(migrated.environment_of("api") | {"CALOTYPE_METRICS_PORT": str(metrics_port)}) as found:
        yield found


def pieces(num_bytes: int) -> Iterator[bytes]:
    while num_bytes > 0:
        yield PIECE[:num_bytes]
        num_bytes -= len(PIECE)


def connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)


def ask(
    line: http.client.HTTPConnection,
    method: str,
    path: str,
    num_bytes: int,
    headers: dict[str, str],
    *,
    chunked: bool = False,
) -> tuple[int, dict[str, str], bytes]:
    """The answer, read once the whole body is sent, as pooled clients do it."""
    body: Iterable[bytes] = pieces(num_bytes)
    length = {} if chunked else {"Content-Length": str(num_bytes)}
    line.request(method, path, body=body, headers={**headers, **length}, encode_chunked=chunked)
    answer = line.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def early_answers(api_key: str) -> list[tuple[str, str, dict[str, str], int]]:
    """Requests that are answered for what their header says: method, path, headers, status."""
    key = {"Authorization": f"Bearer {api_key}"}
    return [
        ("POST", "/v1/jobs", JSON, 401),
        ("POST", "/v1/batches", {"Content-Type": "multipart/form-data; boundary=x"}, 401),
        ("POST", "/v1/jobs", {**key, **JSON}, 413),
        ("POST", "/v1/jobs", {**key, "Content-Type": "text/plain"}, 415),
        ("POST", "/v1/jobs", {**key, **JSON, "Content-Encoding": "br"}, 415),
        ("POST", "/v1/nothing", {**key, **JSON}, 404),
        ("PUT", "/v1/jobs", {**key, **JSON}, 405),
        ("POST", "/session", {"Content-Type": "application/x-www-form-urlencoded"}, 413),
        ("GET", "/healthz", {}, 200),
        ("post", "/v1/jobs", {**key, **JSON}, 501),
    ]


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("num_bytes", SIZES)
def test_S4_an_answer_before_the_body_was_read_arrives_and_the_next_request_is_answered(
    server: Served, api_key: str, num_bytes: int, chunked: bool
) -> None:
    requests = early_answers(api_key)
    if num_bytes == max(SIZES):
        requests = requests[:1] + requests[2:3]  # the rest would only send more of the same
    for method, path, headers, status in requests:
        with closing(connect(server.port)) as line:
            got, said, _ = ask(line, method, path, num_bytes, headers, chunked=chunked)
            assert got == status, (method, path)
            # A client goes on with this connection, unless it was told to open another.
            goes_on = said.get("connection") != "close"
            assert (line.sock is not None) == goes_on
            if not chunked or num_bytes > 1_000_000:  # else all of it may have come at once
                assert goes_on == (not chunked and num_bytes <= 16_777_216)
            assert ask(line, "GET", "/healthz", 0, {})[0] == 200


@pytest.mark.parametrize("num_bytes", SIZES)
def test_S4_a_client_that_asks_before_it_sends_is_answered_at_once_and_told_to_connect_anew(
    server: Served, api_key: str, num_bytes: int
) -> None:
    for method, path, headers, status in early_answers(api_key):
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {num_bytes}\r\n{fields}"
        with socket.create_connection(("127.0.0.1", server.port), SOON) as line:
            line.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
            answer = read_all(line)
        assert answer.startswith(b"HTTP/1.1 %d " % status), (method, path, answer[:100])
        assert b"\r\nconnection: close\r\n" in answer.lower()


def test_S4_a_body_that_is_welcome_is_asked_for(server: Served, api_key: str) -> None:
    body = json.dumps({"prompt": "a red heart"}).encode()
    with socket.create_connection(("127.0.0.1", server.port), SOON) as line:
        line.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
            b"Authorization: Bearer %b\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n"
            % (api_key.encode(), len(body))
        )
        assert line.recv(65_536).startswith(b"HTTP/1.1 100 ")
        line.sendall(body)
        assert read_all(line).startswith(b"HTTP/1.1 202 ")


@pytest.mark.parametrize("num_bytes", SIZES[:2])
def test_S4_the_port_of_metrics_answers_early_too(server: Served, metrics_port: int, num_bytes: int) -> None:
    assert server.process.poll() is None
    for method, status in (("POST", 405), ("GET", 200), ("HEAD", 200)):
        with closing(connect(metrics_port)) as line:
            assert ask(line, method, "/metrics", num_bytes, {})[0] == status
            assert ask(line, "GET", "/metrics", 0, {})[0] == 200


def test_S4_a_request_that_is_no_http_is_told_so_while_more_of_it_comes(server: Served) -> None:
    for sent, status in (
        (b"nonsense\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000, 431),
        (b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ):
        with socket.create_connection(("127.0.0.1", server.port), SOON) as line:
            line.sendall(sent)
            for piece in pieces(3_000_000):
                line.sendall(piece)
            answer = read_all(line)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
        assert b"\r\nconnection: close\r\n" in answer.lower()


def test_S4_who_sends_slowly_what_nobody_reads_gets_the_answer_and_who_stops_is_cut(
    migrated: Embedded,
) -> None:
    """Lingering ends: with the body, after a silence, and with the deadline of an upload of as many bytes."""
    short = {"CALOTYPE_BODY_SECONDS": "1", "CALOTYPE_MAX_CONNECTIONS": "8"}
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n"
    with served(migrated.environment_of("api") | short) as server:
        with socket.create_connection(("127.0.0.1", server.port), SOON) as slow:
            slow.sendall(head)
            for piece in pieces(3_000_000):
                slow.sendall(piece)
                threading.Event().wait(0.2)  # twice as long as the deadline, and not too slow for it
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answers = read_all(slow)
            assert (answers.count(b"HTTP/1.1 401 "), answers.count(b"HTTP/1.1 200 ")) == (1, 1)
        with socket.create_connection(("127.0.0.1", server.port), SOON) as silent:
            silent.sendall(head + b" " * 1000)
            assert read_all(silent).startswith(b"HTTP/1.1 401 ")
        # Eight that linger leave a place to the next one: they are the first to be cut.
        lines = [socket.create_connection(("127.0.0.1", server.port), SOON) for _ in range(8)]
        for line in lines:
            line.sendall(head)
            assert line.recv(65_536).startswith(b"HTTP/1.1 401 ")
        with closing(connect(server.port)) as next_one:
            assert ask(next_one, "GET", "/healthz", 0, {})[0] == 200
        for line in lines:
            line.close()


def read_all(line: socket.socket) -> bytes:
    """What comes until the server ends the connection."""
    found = b""
    while piece := line.recv(65_536):
        found += piece
    return found
