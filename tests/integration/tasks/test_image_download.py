"""The promises of a download: public addresses alone, also after a redirect, within a size and a time."""

import ipaddress
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tasks.errors import DownloadFailed
from tasks.images.download import MAX_REDIRECTS, ImageDownload

from .receiver import Received, Receiver, answer

MakeReceiver = Callable[..., Receiver]
LOOPBACK = [ipaddress.ip_network("127.0.0.0/8")]
MAX_BYTES = 1000


@pytest.fixture
def download(ca_file: Path) -> ImageDownload:
    return ImageDownload(max_bytes=MAX_BYTES, timeout_seconds=5, allowed_networks=LOOPBACK, ca_file=ca_file)


def test_the_body_is_had_whole_and_the_request_carries_nothing_of_ours(
    download: ImageDownload, make_receiver: MakeReceiver
) -> None:
    receiver = make_receiver(answer(200, b"x" * MAX_BYTES))
    assert download.get(receiver.url("/a.png?size=2")) == b"x" * MAX_BYTES
    (request,) = receiver.received
    assert request.path == "/a.png?size=2"
    assert {name.lower() for name in request.headers} == {
        "host", "accept", "accept-encoding", "connection", "user-agent",
    }  # fmt: skip


def test_one_byte_too_many_is_refused(download: ImageDownload, make_receiver: MakeReceiver) -> None:
    receiver = make_receiver(answer(200, b"x" * (MAX_BYTES + 1)))
    with pytest.raises(DownloadFailed, match="more than 1000 bytes"):
        download.get(receiver.url())


@pytest.mark.parametrize("status", [204, 404, 500])
def test_only_a_200_is_an_image(download: ImageDownload, make_receiver: MakeReceiver, status: int) -> None:
    with pytest.raises(DownloadFailed, match=f"it answered {status}"):
        download.get(make_receiver(answer(status)).url())


def test_a_redirect_is_followed_to_another_path(download: ImageDownload, make_receiver: MakeReceiver) -> None:
    def behave(handler: BaseHTTPRequestHandler, request: Received) -> None:
        moved = answer(302, Location="/b.png") if request.path == "/a.png" else answer(200, b"moved")
        moved(handler, request)

    assert download.get(make_receiver(behave).url("/a.png")) == b"moved"


@pytest.mark.parametrize(
    "target",
    ["http://localhost/a.png", "https://10.0.0.1/a.png", "https://[fd00::1]/a.png", "file:///etc/passwd"],
)
def test_a_redirect_leads_nowhere_that_a_url_may_not_name(
    download: ImageDownload, make_receiver: MakeReceiver, target: str
) -> None:
    receiver = make_receiver(answer(301, Location=target))
    with pytest.raises(DownloadFailed, match=r"address that is not public|only https URLs"):
        download.get(receiver.url())
    assert len(receiver.received) == 1


def test_a_circle_of_redirects_ends(download: ImageDownload, make_receiver: MakeReceiver) -> None:
    receiver = make_receiver(answer(302, Location="/hook"))
    with pytest.raises(DownloadFailed, match="redirects more than"):
        download.get(receiver.url())
    assert len(receiver.received) == MAX_REDIRECTS + 1


def test_loopback_is_refused_unless_it_was_opened(ca_file: Path, make_receiver: MakeReceiver) -> None:
    receiver = make_receiver(answer(200, b"inside"))
    closed = ImageDownload(max_bytes=MAX_BYTES, timeout_seconds=5, ca_file=ca_file)
    with pytest.raises(DownloadFailed, match=r"not downloaded from its port|address that is not public"):
        closed.get(receiver.url())
    assert receiver.received == []


def test_a_body_that_drips_is_cut_at_the_time(ca_file: Path, make_receiver: MakeReceiver) -> None:
    over = threading.Event()

    def drip(handler: BaseHTTPRequestHandler, _: Received) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(MAX_BYTES))
        handler.end_headers()
        for _byte in range(MAX_BYTES):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            if over.wait(0.05):
                return

    receiver = make_receiver(drip)
    slow = ImageDownload(max_bytes=MAX_BYTES, timeout_seconds=0.5, allowed_networks=LOOPBACK, ca_file=ca_file)
    with pytest.raises(DownloadFailed, match="took too long"):
        slow.get(receiver.url())
    over.set()
