"""The promises of the metrics' port: it answers Prometheus, and it bears strangers."""

import gzip
import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest
from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from structlog.testing import capture_logs

from local.ports import choose_ports
from tasks.metrics.server import MAX_CONNECTIONS, MAX_HEADER_BYTES, serve_metrics


@pytest.fixture(scope="module")
def port() -> int:
    """Where a registry with one counter is answered."""
    registry = CollectorRegistry()
    Counter("calotype_tests", "Of this test.", registry=registry).inc(3)
    port = choose_ports(["metrics"])["metrics"]
    serve_metrics(registry, "127.0.0.1", port)
    return port


@pytest.fixture
def connection(port: int) -> Iterator[http.client.HTTPConnection]:
    """A connection to it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    yield connection
    connection.close()


def test_prometheus_is_answered_in_the_format_that_it_asks_for(
    connection: http.client.HTTPConnection,
) -> None:
    for accept, kind in (("", "text/plain"), ("application/openmetrics-text;version=1.0.0", "application/")):
        connection.request("GET", "/metrics", headers={"Accept": accept})
        answer = connection.getresponse()
        assert answer.status == 200
        assert str(answer.headers["Content-Type"]).startswith(kind)
        assert "calotype_tests_total 3.0" in answer.read().decode()


def test_an_answer_is_compressed_for_whoever_reads_that(connection: http.client.HTTPConnection) -> None:
    connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    assert answer.headers["Content-Encoding"] == "gzip"
    assert b"calotype_tests_total 3.0" in gzip.decompress(answer.read())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("POST", "/metrics", 405), ("HEAD", "/metrics", 200), ("GET", "/metrics?x=1", 200)],
)
def test_there_is_one_page_to_be_read(
    connection: http.client.HTTPConnection, method: str, path: str, status: int
) -> None:
    connection.request(method, path)
    answer = connection.getresponse()
    assert answer.status == status
    assert (answer.read() == b"") == (method == "HEAD")


@pytest.mark.parametrize("said", [b"\r\n\r\n", b"hello\r\n\r\n", b"GET /metrics SPDY/1\r\n\r\n"])
def test_what_is_no_http_is_a_bad_request(port: int, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(said)
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")


def is_closed(client: socket.socket) -> bool:
    """Whether the server ends this connection; waits for it."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_header_that_is_too_long_is_cut(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"x" * (MAX_HEADER_BYTES + 1))
        assert is_closed(client)


def test_whoever_keeps_silent_is_cut_for_the_next(port: int, connection: http.client.HTTPConnection) -> None:
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            for _ in range(3 * MAX_CONNECTIONS)
        ]
        connection.request("GET", "/metrics")
        assert connection.getresponse().status == 200
        assert all(is_closed(client) for client in silent[:MAX_CONNECTIONS])


def test_an_answer_that_takes_long_is_not_cut_for_those_who_keep_silent() -> None:
    asked, go_on = threading.Event(), threading.Event()

    class Slow(Collector):
        def collect(self) -> Iterator[Metric]:
            asked.set()
            assert go_on.wait(30)
            yield CounterMetricFamily("calotype_tests", "Of this test.", 3)

        def describe(self) -> list[Metric]:
            return []  # else registering it would collect

    registry = CollectorRegistry()
    registry.register(Slow())
    port = choose_ports(["metrics"])["metrics"]
    serve_metrics(registry, "127.0.0.1", port)
    with ExitStack() as stack:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        stack.callback(connection.close)
        connection.request("GET", "/metrics")
        assert asked.wait(30)
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            for _ in range(3 * MAX_CONNECTIONS)
        ]
        assert all(is_closed(client) for client in silent[:MAX_CONNECTIONS])
        go_on.set()
        assert connection.getresponse().status == 200


def num_open(port: int) -> int:
    """How many connections to this port the process' server has open."""
    local = [connection for connection in psutil.Process().net_connections("tcp4") if connection.laddr]
    return sum(one.status == "ESTABLISHED" and one.laddr.port == port for one in local)


def test_of_many_that_connect_at_once_only_so_many_stay(
    port: int, connection: http.client.HTTPConnection
) -> None:
    with ExitStack() as stack:
        silent = []
        for _ in range(200):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            silent.append(client)
        connection.request("GET", "/metrics")
        assert connection.getresponse().status == 200
        assert num_open(port) <= MAX_CONNECTIONS


def test_a_port_that_is_taken_is_said_and_ends_nothing(port: int) -> None:
    with capture_logs() as lines:
        serve_metrics(CollectorRegistry(), "127.0.0.1", port)
    assert [line["event"] for line in lines] == ["metrics_not_served"]


def test_nothing_listens_without_a_port_and_only_where_it_is_told() -> None:
    port = choose_ports(["metrics"])["metrics"]
    serve_metrics(CollectorRegistry(), "127.0.0.1", 0)
    serve_metrics(CollectorRegistry(), "127.0.0.2", port)
    with socket.create_connection(("127.0.0.2", port), timeout=30):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=30)
