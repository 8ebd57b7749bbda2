"""The promises of the sender's HTTP: a checked address, a bounded time, a bounded answer, no detour."""

import gzip
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import trustme

from tasks.webhooks.client import ANSWER_BYTES, WebhookClient
from tasks.webhooks.connection import MAX_HEADER_BYTES

from .receiver import Behave, Received, Receiver, answer

LOOPBACK = [ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")]
BUDGET_SECONDS = 1.0  # where nothing must arrive within it
LONG_ENOUGH_SECONDS = 5.0  # for what must: TLS on a busy machine
MUCH_LONGER = 10.0  # what a cut-off attempt stays below, on a machine that is busy with other things

MakeClient = Callable[..., WebhookClient]
MakeReceiver = Callable[..., Receiver]


@pytest.fixture
def make_client(ca_file: Path) -> MakeClient:
    def make(**options: object) -> WebhookClient:
        defaults = {"timeout_seconds": 10.0, "allowed_networks": LOOPBACK, "ca_file": ca_file}
        return WebhookClient(**{**defaults, **options})  # type: ignore[arg-type]

    return make


@pytest.fixture
def raw_server() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """Runs a function for each connection to a plain TCP port; the port."""
    listeners: list[socket.socket] = []
    over = threading.Event()

    def serve(behave: Callable[[socket.socket], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def accept() -> None:
            with suppress(OSError):
                while not over.is_set():
                    connection, _ = listener.accept()
                    threading.Thread(target=run, args=(connection,), daemon=True).start()

        def run(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                behave(connection)
                over.wait(60)

        threading.Thread(target=accept, daemon=True).start()
        return int(listener.getsockname()[1])

    yield serve
    over.set()
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_a_receiver_gets_the_post_and_its_answer_is_kept(
    make_client: MakeClient, make_receiver: MakeReceiver
) -> None:
    receiver = make_receiver(answer(200, b"thank you\x1b[2J"))
    got = make_client().post(receiver.url("/a;token=1?b=c"), {"webhook-id": "whd_1"}, b'{"a":1}')
    assert (got.status, got.text, got.error_code) == (200, "thank you\ufffd[2J", None)
    (request,) = receiver.received
    assert (request.path, request.body, request.headers["webhook-id"]) == (
        "/a;token=1?b=c",
        b'{"a":1}',
        "whd_1",
    )
    assert request.headers["Host"] == f"localhost:{receiver.port}"
    assert request.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(
    status: int, make_client: MakeClient, make_receiver: MakeReceiver
) -> None:
    target = make_receiver(answer(200))
    receiver = make_receiver(answer(status, Location=target.url()))
    assert make_client().post(receiver.url(), {}, b"{}").status == status
    assert target.received == []


def _drip(handler: BaseHTTPRequestHandler, _: Received) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while True:
        handler.wfile.write(b".")
        time.sleep(0.05)


def _drip_header(handler: BaseHTTPRequestHandler, _: Received) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        handler.wfile.write(b".")
        time.sleep(0.05)


def _drip_informational(handler: BaseHTTPRequestHandler, _: Received) -> None:
    while True:
        handler.wfile.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        time.sleep(0.05)


def test_a_body_that_drips_is_cut_off_and_its_status_counts(
    make_client: MakeClient, make_receiver: MakeReceiver
) -> None:
    begun = time.monotonic()
    got = make_client(timeout_seconds=LONG_ENOUGH_SECONDS).post(make_receiver(_drip).url(), {}, b"{}")
    assert time.monotonic() - begun < MUCH_LONGER
    assert got.status == 200
    assert set(got.text or "") == {"."}


@pytest.mark.parametrize("behave", [_drip_header, _drip_informational])
def test_a_header_that_drips_is_cut_off(
    behave: Behave, make_client: MakeClient, make_receiver: MakeReceiver
) -> None:
    begun = time.monotonic()
    got = make_client(timeout_seconds=BUDGET_SECONDS).post(make_receiver(behave).url(), {}, b"{}")
    assert time.monotonic() - begun < MUCH_LONGER
    assert (got.status, got.error_code) == (None, "timeout")


def test_a_server_that_accepts_and_says_nothing_is_left(make_client: MakeClient, raw_server) -> None:  # type: ignore[no-untyped-def]
    port = raw_server(lambda _: None)
    begun = time.monotonic()
    got = make_client(timeout_seconds=BUDGET_SECONDS).post(f"https://localhost:{port}/", {}, b"{}")
    assert time.monotonic() - begun < MUCH_LONGER
    assert got.error_code == "timeout"


def test_a_resolver_that_hangs_is_left(make_client: MakeClient) -> None:
    held = threading.Event()

    def hang(_host: str, _port: int) -> Sequence[str]:
        held.wait(60)
        return []

    begun = time.monotonic()
    client = make_client(timeout_seconds=BUDGET_SECONDS, resolve=hang)
    assert client.post("https://hooks.example.com/", {}, b"{}").error_code == "timeout"
    assert time.monotonic() - begun < MUCH_LONGER
    held.set()


def test_a_huge_answer_is_dropped_after_its_beginning(
    make_client: MakeClient, make_receiver: MakeReceiver
) -> None:
    num_sent = []

    def flood(handler: BaseHTTPRequestHandler, _: Received) -> None:
        handler.send_response(500)
        handler.send_header("Content-Length", "50000000")
        handler.end_headers()
        for number in range(50):
            handler.wfile.write(b"x" * 1_000_000)
            num_sent.append(number)

    got = make_client().post(make_receiver(flood).url(), {}, b"{}")
    assert (got.status, got.text) == (500, "x" * ANSWER_BYTES)
    assert len(num_sent) < 50


def test_a_header_without_end_is_refused(make_client: MakeClient, make_receiver: MakeReceiver) -> None:
    num_sent = []

    def flood(handler: BaseHTTPRequestHandler, _: Received) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(10_000):
            handler.wfile.write(b"X-More: " + b"x" * 1000 + b"\r\n")
            num_sent.append(number)

    got = make_client().post(make_receiver(flood).url(), {}, b"{}")
    assert (got.status, got.error_code) == (None, "answer_malformed")
    assert str(MAX_HEADER_BYTES) in (got.error_detail or "")
    assert len(num_sent) < 10_000


def test_a_compressed_answer_is_not_unpacked(make_client: MakeClient, make_receiver: MakeReceiver) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    got = make_client().post(make_receiver(answer(200, bomb, Content_Encoding="gzip")).url(), {}, b"{}")
    assert got.status == 200
    assert len(got.text or "") <= ANSWER_BYTES


@pytest.mark.parametrize(
    "sent", [b"", b"not HTTP at all\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"]
)
def test_nonsense_is_a_failure_and_no_fault_of_ours(
    sent: bytes, make_client: MakeClient, make_receiver: MakeReceiver
) -> None:
    def babble(handler: BaseHTTPRequestHandler, _: Received) -> None:
        handler.wfile.write(sent)

    assert make_client().post(make_receiver(babble).url(), {}, b"{}").error_code == "answer_malformed"


def test_a_receiver_that_is_down_is_a_failure(make_client: MakeClient, make_receiver: MakeReceiver) -> None:
    receiver = make_receiver(answer(200))
    receiver.close()
    assert make_client().post(receiver.url(), {}, b"{}").error_code == "connection_failed"


@pytest.mark.parametrize(
    "found", [["127.0.0.1"], ["93.184.215.14", "10.0.0.7"], ["::ffff:127.0.0.1"], ["::1"]]
)
def test_a_name_that_leads_inside_is_refused_and_nothing_is_connected_to(
    found: list[str], make_client: MakeClient, make_receiver: MakeReceiver
) -> None:
    receiver = make_receiver(answer(200), names=("hooks.example.com",))
    client = make_client(allowed_networks=[], ports=[receiver.port], resolve=lambda _host, _port: found)
    got = client.post(receiver.url(host="hooks.example.com"), {}, b"{}")
    assert got.error_code == "address_refused"
    assert not any(address in (got.error_detail or "") for address in found)
    assert receiver.received == []


def test_localhost_by_the_systems_own_resolver_is_refused(
    make_client: MakeClient, make_receiver: MakeReceiver
) -> None:
    receiver = make_receiver(answer(200))
    client = make_client(allowed_networks=[], ports=[receiver.port])
    assert client.post(receiver.url(), {}, b"{}").error_code == "address_refused"
    assert receiver.received == []


def test_a_name_that_changes_its_address_after_the_check_gains_nothing(
    make_client: MakeClient, make_receiver: MakeReceiver
) -> None:
    checked = make_receiver(answer(200), names=("hooks.example.com",))
    other = make_receiver(answer(200), names=("hooks.example.com",), address="127.0.0.2", port=checked.port)
    answers = iter([["127.0.0.1"], ["127.0.0.2"], ["127.0.0.2"]])
    asked = []

    def rebind(host: str, _port: int) -> Sequence[str]:
        asked.append(host)
        return next(answers)

    client = make_client(allowed_networks=[ipaddress.ip_network("127.0.0.1/32")], resolve=rebind)
    assert client.post(checked.url(host="hooks.example.com"), {}, b"{}").status == 200
    assert asked == ["hooks.example.com"]
    assert (len(checked.received), len(other.received)) == (1, 0)
    # At the next attempt the name is checked anew.
    got = client.post(checked.url(host="hooks.example.com"), {}, b"{}")
    assert got.error_code == "address_refused"
    assert (len(checked.received), len(other.received)) == (1, 0)


def test_an_address_that_is_down_is_followed_by_the_next(
    make_client: MakeClient, make_receiver: MakeReceiver
) -> None:
    receiver = make_receiver(answer(200))
    client = make_client(resolve=lambda _host, _port: ["127.0.0.3", "127.0.0.1"])
    assert client.post(receiver.url(), {}, b"{}").status == 200


def test_a_name_without_an_address_is_a_failure(make_client: MakeClient) -> None:
    def nothing(_host: str, _port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    got = make_client(resolve=nothing).post("https://nowhere.example/", {}, b"{}")
    assert got.error_code == "name_not_found"


def test_the_certificate_must_be_that_of_the_name(
    make_client: MakeClient, make_receiver: MakeReceiver
) -> None:
    receiver = make_receiver(answer(200), names=("other.example.com",))
    assert make_client().post(receiver.url(), {}, b"{}").error_code == "tls_failed"
    assert receiver.received == []


def test_a_certificate_of_an_unknown_authority_is_refused(make_client: MakeClient) -> None:
    receiver = Receiver(trustme.CA(), answer(200))
    try:
        assert make_client().post(receiver.url(), {}, b"{}").error_code == "tls_failed"
    finally:
        receiver.close()


def test_plain_http_and_user_names_are_refused(make_client: MakeClient, make_receiver: MakeReceiver) -> None:
    receiver = make_receiver(answer(200))
    for url in (receiver.url().replace("https", "http"), receiver.url(host="user@localhost")):
        assert make_client().post(url, {}, b"{}").error_code == "address_refused"
    assert receiver.received == []


def test_a_proxy_in_the_environment_is_not_used(
    make_client: MakeClient, make_receiver: MakeReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = make_receiver(answer(200))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    receiver = make_receiver(answer(204))
    assert make_client().post(receiver.url(), {}, b"{}").status == 204
    assert proxy.received == []


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("120", 120, 120),
        ("Fri, 31 Dec 2100 23:59:59 GMT", 1e9, 1e10),
        ("soon", None, None),
        ("Fri, 31 Dec 99999999999 23:59:59 GMT", None, None),
        ("-5", None, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(
    value: str, low: float | None, high: float | None, make_client: MakeClient, make_receiver: MakeReceiver
) -> None:
    got = make_client().post(make_receiver(answer(503, Retry_After=value)).url(), {}, b"{}")
    if low is None or high is None:
        assert got.retry_after_seconds is None
    else:
        assert got.retry_after_seconds is not None
        assert low <= got.retry_after_seconds <= high
