"""The promises of an upload: small files go to the API, large ones to its store; a lost one is sent again."""

import asyncio
import hashlib
import json
from pathlib import Path

import pytest

from client.calotype import AsyncClient, Client, File, UploadError
from client.calotype.steps import LARGE_BYTES

from .conftest import Answer, Serve, Server, json_answer, problem_answer

SMALL = b"\x89PNG\r\n\x1a\n, or so it says"
LARGE = SMALL.ljust(LARGE_BYTES, b"\0")
DIGEST = hashlib.sha256(LARGE).hexdigest()
FILE = json_answer(
    {"id": "file_1", "num_bytes": 3, "width": 2, "created_at": "2026-01-01T00:00:00+00:00"}, 201
)


def client_of(server: Server, max_retries: int = 0) -> Client:
    return Client(url=server.url, api_key="calo_secret", max_retries=max_retries)


def leads_to(store: Server) -> Answer:
    headers = {"Content-Type": "image/png", "Content-Length": str(len(LARGE)), "x-amz-checksum-sha256": "abc"}
    upload = {"id": "file_1", "method": "PUT", "url": f"{store.url}/bucket/key?signature=abc"}
    return json_answer({**upload, "headers": headers}, 201)


def test_a_small_file_goes_to_the_api_in_a_form(serve: Serve, tmp_path: Path) -> None:
    server = serve(FILE)
    (tmp_path / "a.png").write_bytes(SMALL)
    with client_of(server) as client:
        for image in (SMALL, tmp_path / "a.png", str(tmp_path / "a.png")):
            file = client.upload(image)
            assert (file.id, file.num_bytes, file.width) == ("file_1", 3, 2)
            assert file.created_at is not None
    assert all(one.path == "/v1/files" and SMALL in one.body for one in server.asked)


def test_a_large_file_goes_to_the_store_and_the_key_does_not(serve: Serve) -> None:
    store = serve(Answer())
    server = serve(leads_to(store), FILE)
    with client_of(server) as client:
        assert client.upload(LARGE).id == "file_1"
    (asked,) = store.asked
    assert (asked.method, asked.body) == ("PUT", LARGE)
    assert asked.headers["x-amz-checksum-sha256"] == "abc"
    assert asked.headers["content-type"] == "image/png"
    assert "authorization" not in asked.headers
    begun, completed = server.asked
    declared = {"sha256": DIGEST, "num_bytes": len(LARGE), "media_type": "image/png"}
    assert json.loads(begun.body) == declared
    assert completed.path == "/v1/files/file_1/complete"


def test_a_large_file_that_is_there_is_not_sent(serve: Serve) -> None:
    server = serve(FILE)
    with client_of(server) as client:
        assert isinstance(client.upload(LARGE), File)
    assert [one.path for one in server.asked] == ["/v1/files/uploads"]


@pytest.mark.parametrize("first", [Answer(lose=True), Answer(403, b"expired"), Answer(503)])
def test_a_large_file_that_did_not_arrive_is_sent_again_under_a_fresh_link(
    serve: Serve, first: Answer
) -> None:
    store = serve(first, Answer())
    server = serve(leads_to(store), leads_to(store), FILE)
    with client_of(server, max_retries=1) as client:
        assert client.upload(LARGE).id == "file_1"
    assert len(store.asked) == 2


def test_a_store_that_does_not_take_it_is_told_without_its_signature(serve: Serve) -> None:
    store = serve(Answer(403))
    with client_of(serve(leads_to(store))) as client, pytest.raises(UploadError, match="403") as failed:
        client.upload(LARGE)
    assert "signature" not in str(failed.value)


def test_what_is_no_image_is_left_for_the_api_to_refuse(serve: Serve) -> None:
    server = serve(problem_answer(422, "invalid_image"))
    with client_of(server) as client, pytest.raises(Exception, match="422"):
        client.upload(b"GIF89a".ljust(LARGE_BYTES, b"\0"))
    assert [one.path for one in server.asked] == ["/v1/files"]


def test_a_file_that_cannot_be_read_is_an_os_error(serve: Serve, tmp_path: Path) -> None:
    server = serve(FILE)
    with client_of(server) as client, pytest.raises(OSError, match="nothing"):
        client.upload(tmp_path / "nothing.png")
    assert server.asked == []


def test_the_asynchronous_client_does_the_same(serve: Serve) -> None:
    store = serve(Answer())
    server = serve(leads_to(store), FILE)

    async def upload() -> File:
        async with AsyncClient(url=server.url, api_key="calo_secret") as client:
            return await client.upload(LARGE)

    assert asyncio.run(upload()).id == "file_1"
    assert len(store.asked) == 1
