"""Large files over slow lines, against the process as it is shipped: nobody's thread is held for them."""

import socket
import threading
import time
from collections.abc import Iterator

import httpx2
import numpy as np
import pytest
from PIL import Image

from client.calotype import Client, InvalidRequestError
from local.endpoints import Embedded
from tests.fixtures.image_files import encoded, photo
from tests.served import Served, served

SOON = 60.0


def large(num_bytes: int) -> bytes:
    """A PNG of about so many bytes, all of them noise."""
    side = int((num_bytes / 3) ** 0.5) + 1
    noise = np.random.default_rng(num_bytes).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), compress_level=0)


@pytest.fixture(scope="module")
def server(migrated: Embedded) -> Iterator[Served]:
    """With a single thread: whoever held it would stop everybody."""
    with served(migrated.environment_of("api") | {"CALOTYPE_WEB_THREADS": "1"}) as found:
        yield found


@pytest.fixture
def api(server: Served, api_key: str) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {api_key}"}
    with httpx2.Client(base_url=server.url, headers=headers, trust_env=False, timeout=SOON) as found:
        yield found


def test_twenty_megabytes_over_a_slow_line_hold_no_thread_and_arrive(
    server: Served, api: httpx2.Client
) -> None:
    image = large(20_000_000)
    request = api.build_request("POST", "/v1/files", files={"file": ("a.png", image, "image/png")})
    body = request.read()
    head = "\r\n".join(
        [
            "POST /v1/files HTTP/1.1",
            "Host: x",
            f"Authorization: {api.headers['Authorization']}",
            f"Content-Type: {request.headers['Content-Type']}",
            f"Content-Length: {len(body)}",
            "Connection: close",
            "",
            "",
        ]
    )
    longest, num_pieces = 0.0, 40
    with socket.create_connection(("127.0.0.1", server.port), SOON) as line:
        line.sendall(head.encode())
        for number in range(num_pieces):
            line.sendall(body[len(body) * number // num_pieces : len(body) * (number + 1) // num_pieces])
            began = time.monotonic()
            assert api.get("/v1/files").status_code == 200
            longest = max(longest, time.monotonic() - began)
            threading.Event().wait(0.05)
        answer = b""
        while piece := line.recv(65_536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 201 "), answer
    assert longest < 2
    assert [file["num_bytes"] for file in api.get("/v1/files").json()["files"]] == [len(image)]


def test_without_a_key_no_file_is_waited_for(server: Served) -> None:
    head = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), SOON) as line:
        line.sendall(head)
        assert line.recv(65_536).startswith(b"HTTP/1.1 401 ")


def test_other_routes_take_no_more_than_before(api: httpx2.Client) -> None:
    for path in ("/v1/files/uploads", "/v1/jobs"):
        answer = api.post(path, content=b" " * 100_000, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413


@pytest.mark.parametrize("num_bytes", [1000, 6_000_000])
def test_the_client_sends_small_files_to_the_api_and_large_ones_to_the_store(
    server: Served, api_key: str, num_bytes: int
) -> None:
    image = large(num_bytes)
    with Client(url=server.url, api_key=api_key) as client:
        file = client.upload(image)
        assert (file.num_bytes, file.media_type) == (len(image), "image/png")
        assert client.upload(image).id == file.id
        with pytest.raises(InvalidRequestError, match="is broken or cut off"):
            client.upload(image[: -num_bytes // 10])
        with pytest.raises(InvalidRequestError, match="is a GIF"):
            client.upload(encoded(photo(), "GIF"))
