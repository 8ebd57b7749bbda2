"""S4: unusual requests, as old clients, proxies and scanners send them, each have one answer and leave the
connection as the answer says."""

import re
import socket
import threading
from collections.abc import Iterator

import pytest

from local.endpoints import Embedded
from tests.served import Served, served

SOON = 60.0
LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
JOB = b'{"prompt": "a red heart"}'


@pytest.fixture(scope="module")
def server(migrated: Embedded) -> Iterator[Served]:
    with served(migrated.environment_of("api")) as found:
        yield found


def exchange(server: Served, *sent: bytes, pause: float = 0.05) -> bytes:
    """What comes until the server ends the connection; each part is a packet of its own."""
    with socket.create_connection(("127.0.0.1", server.port), SOON) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, part in enumerate(sent):
            if number:
                threading.Event().wait(pause)
            line.sendall(part)
        found = b""
        while piece := line.recv(65_536):
            found += piece
        return found


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answer)]


def head(line: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join([line, b"Host: x", *fields, b"", b""])


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (head(b"HEAD /healthz HTTP/1.1", b"Content-Length: 5") + b"hello", 200),
        (head(b"GET /healthz HTTP/1.1", b"Content-Length: 5") + b"hello", 200),
        (head(b"GET /openapi.json HTTP/1.1", b"Content-Length: 5") + b"hello", 200),
        (head(b"GET /v1/jobs HTTP/1.1", b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n", 401),
        (head(b"DELETE /v1/jobs HTTP/1.1", b"Content-Length: 100000") + b" " * 100_000, 405),
        (head(b"POST /v1/jobs HTTP/1.1", b"Content-Length: 0"), 401),
        (head(b"POST /v1/jobs HTTP/1.1"), 401),
        (head(b"POST /v1/jobs HTTP/1.1", b"Content-Length: 5, 5") + b"hello", 401),
        (head(b"POST /v1/jobs HTTP/1.1", b"Content-Length: 5", b"Content-Length: 5") + b"hello", 401),
        (head(b"POST /v1/jobs HTTP/1.1", b"Transfer-Encoding: CHUNKED") + b"0;a=b\r\nX: y\r\n\r\n", 401),
        (head(b"GET http://elsewhere:80/healthz HTTP/1.1"), 200),
        (head(b"GET HTTP://elsewhere/v1/jobs?limit=1 HTTP/1.1"), 401),
        (head(b"GET http://elsewhere HTTP/1.1"), 200),
        (head(b"OPTIONS * HTTP/1.1"), 204),
        (head(b"OPTIONS /v1/jobs HTTP/1.1"), 204),
        (head(b"get /healthz HTTP/1.1"), 501),
        (head(b"head /healthz HTTP/1.1"), 501),
        (head(b"Post /v1/jobs HTTP/1.1", b"Content-Length: 5") + b"hello", 501),
        (head(b"PROPFIND /v1/jobs HTTP/1.1"), 405),
        (head(b"TRACE / HTTP/1.1"), 405),
        (head(b"GET /v1%2Fjobs HTTP/1.1"), 401),
        (head(b"GET /v1/jobs/..%2f..%2fetc HTTP/1.1"), 404),
        (head(b"GET /%00 HTTP/1.1"), 404),
        (head(b"GET /%ff%fe HTTP/1.1"), 404),
        (head(b"GET /%zz HTTP/1.1"), 404),
        (head(b"GET /v1/jobs?" + b"a" * 5000 + b" HTTP/1.1"), 422),
        (head(b"GET /" + b"a" * 9000 + b" HTTP/1.1"), 414),
        (head(b"GET /healthz HTTP/1.1", b"Upgrade: websocket", b"Connection: Upgrade"), 200),
        (head(b"GET /healthz HTTP/1.1", b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings"), 200),
        (b"\r\n" + head(b"GET /healthz HTTP/1.1"), 200),
    ],
)
def test_S4_an_odd_request_has_one_answer_and_the_next_is_answered(
    server: Served, sent: bytes, status: int
) -> None:
    for parts in ((sent + LAST,), (sent, LAST)):
        assert statuses(exchange(server, *parts)) == [status, 200]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (head(b"GET /healthz HTTP/1.1", b"Connection: Close"), 200),
        (head(b"GET /healthz HTTP/1.1", b"Connection: keep-alive, close"), 200),
        (head(b"GET /healthz HTTP/1.0"), 200),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (head(b"GET /healthz HTTP/1.0", b"Connection: keep-alive"), 200),
        (head(b"POST /v1/jobs HTTP/1.0", b"Content-Length: 5") + b"hello", 401),
        (head(b"POST /v1/jobs HTTP/1.0", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (head(b"POST /v1/jobs HTTP/1.1", b"Transfer-Encoding: identity"), 501),
        (head(b"POST /v1/jobs HTTP/1.1", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 501),
        (head(b"POST /v1/jobs HTTP/1.1", b"Content-Length: 5", b"Content-Length: 6") + b"hello!", 400),
        (head(b"POST /v1/jobs HTTP/1.1", b"Content-Length: -5"), 400),
        (head(b"POST /v1/jobs HTTP/1.1", b"Content-Length: +5") + b"hello", 400),
        (head(b"POST /v1/jobs HTTP/1.1", b"Content-Length: " + b"9" * 19), 401),
        (head(b"POST /v1/jobs HTTP/1.1", b"Content-Length: " + b"9" * 400), 400),
        (head(b"CONNECT elsewhere:443 HTTP/1.1"), 400),
        (head(b"GET ftp://elsewhere/ HTTP/1.1"), 400),
        (head(b"GET healthz HTTP/1.1"), 400),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET /healthz\r\n\r\n", 400),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200, 400),
    ],
)
def test_S4_a_last_request_has_one_answer_that_says_so_whatever_follows(
    server: Served, sent: bytes, status: int
) -> None:
    for parts in ((sent,), (sent + LAST,), (sent, LAST, b"\r\n" * 10, LAST)):
        answer = exchange(server, *parts)
        assert statuses(answer) == [status]
        assert b"\r\nconnection: close\r\n" in answer.lower()


def test_S4_bytes_after_a_last_request_do_not_take_its_answer_away(server: Served, api_key: str) -> None:
    """The job is made while they come: the answer must be the job's."""
    fields = [
        b"Authorization: Bearer " + api_key.encode(),
        b"Content-Type: application/json",
        b"Prefer: wait=0.5",
        b"Content-Length: %d" % len(JOB),
    ]
    for last in (b"Connection: close", b"X: y"):
        request = head(b"POST /v1/jobs HTTP/1.1", *fields, last) + JOB
        answer = exchange(server, request, b"\r\n", b"\r\n", *([LAST] if last == b"X: y" else []))
        assert statuses(answer) == [202, *([200] if last == b"X: y" else [])]


def test_S4_line_ends_between_requests_keep_an_idle_connection_as_it_is(migrated: Embedded) -> None:
    """They begin no request, so the deadline of a header does not run."""
    short = {"CALOTYPE_HEADER_SECONDS": "0.5", "CALOTYPE_IDLE_SECONDS": "30"}
    with served(migrated.environment_of("api") | short) as found:
        first = head(b"GET /healthz HTTP/1.1")
        assert statuses(exchange(found, first, b"\r\n", LAST, pause=1.5)) == [200, 200]


def test_S4_a_whole_address_goes_before_the_header_that_names_the_host(server: Served, api_key: str) -> None:
    fields = [
        b"Authorization: Bearer " + api_key.encode(),
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(JOB),
        b"Connection: close",
    ]
    answer = exchange(server, head(b"POST http://api.example:8000/v1/jobs HTTP/1.1", *fields) + JOB)
    assert b"\r\nlocation: http://api.example:8000/v1/jobs/job_" in answer.lower()


def test_S4_many_requests_sent_at_once_are_answered_in_order_and_to_who_sends_no_more(server: Served) -> None:
    requests = [head(b"GET /healthz HTTP/1.1"), head(b"GET /v1/jobs HTTP/1.1"), head(b"GET /x HTTP/1.1")] * 20
    with socket.create_connection(("127.0.0.1", server.port), SOON) as line:
        line.sendall(b"".join(requests))
        line.shutdown(socket.SHUT_WR)
        found = b""
        while piece := line.recv(65_536):
            found += piece
    assert statuses(found) == [200, 401, 404] * 20


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (head(b"POST /v1/jobs HTTP/1.1", b"Content-Length: 5") + b"hell", 400),
        (head(b"POST /v1/jobs HTTP/1.1", b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n", 400),
        (head(b"POST /v1/jobs HTTP/1.1", b"Content-Length: 100000") + b"hello", 401),
        (head(b"POST /v1/jobs HTTP/1.1", b"Content-Length: 5") + b"hello", 401),
    ],
)
def test_S4_a_body_that_ends_too_early_is_told_so_to_who_still_reads(
    server: Served, sent: bytes, status: int
) -> None:
    for pause in (0.0, 0.1):
        with socket.create_connection(("127.0.0.1", server.port), SOON) as line:
            line.sendall(sent)
            threading.Event().wait(pause)
            line.shutdown(socket.SHUT_WR)
            found = b""
            while piece := line.recv(65_536):
                found += piece
        assert statuses(found) == [status]


def test_S4_a_process_that_stops_says_so_in_the_answers_that_are_under_way(
    migrated: Embedded, api_key: str
) -> None:
    with served(migrated.environment_of("api")) as found:
        request = head(
            b"POST /v1/jobs HTTP/1.1",
            b"Authorization: Bearer " + api_key.encode(),
            b"Content-Type: application/json",
            b"Prefer: wait=30",
            b"Content-Length: %d" % len(JOB),
        )
        with socket.create_connection(("127.0.0.1", found.port), SOON) as line:
            line.sendall(request + JOB)
            threading.Event().wait(1)
            found.process.terminate()
            answer = b""
            while piece := line.recv(65_536):
                answer += piece
        assert statuses(answer) == [202]
        assert b"\r\nconnection: close\r\n" in answer.lower()
        assert found.process.wait(SOON) == 0
