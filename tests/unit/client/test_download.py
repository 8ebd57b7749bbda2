"""The promises of a download: whole, checked, written in one step, and the key stays with the API."""

import asyncio
import hashlib
import os
import stat
from pathlib import Path

import pytest

from client.calotype import AsyncClient, Client, DownloadError, JobNotSucceededError, NotFoundError

from .conftest import Answer, Serve, Server, job_answer, problem_answer

IMAGE = b"\x89PNG, or so it says"
DIGEST = hashlib.sha256(IMAGE).hexdigest()
DONE = job_answer("succeeded", images=[{"index": 0, "sha256": DIGEST}], output_format="png")


def client_of(server: Server, max_retries: int = 0) -> Client:
    return Client(url=server.url, api_key="calo_secret", max_retries=max_retries)


def leads_to(store: Server) -> Answer:
    return Answer(302, headers={"Location": f"{store.url}/bucket/image?signature=abc"})


def test_the_key_stays_with_the_api(serve: Serve, tmp_path: Path) -> None:
    store = serve(Answer(body=IMAGE))
    server = serve(DONE, leads_to(store))
    with client_of(server) as client:
        path = client.download("job_1", tmp_path / "a.png")
    assert path.read_bytes() == IMAGE
    assert server.headers("Authorization") == ["Bearer calo_secret"] * 2
    assert store.headers("Authorization") == [None]
    assert "calo_secret" not in str(store.asked)


def test_a_folder_gets_a_file_that_is_named_after_the_job(serve: Serve, tmp_path: Path) -> None:
    server = serve(DONE, leads_to(serve(Answer(body=IMAGE))))
    with client_of(server) as client:
        assert client.download("job_1", tmp_path) == tmp_path / "job_1-0.png"
    assert [one.name for one in tmp_path.iterdir()] == ["job_1-0.png"]


@pytest.mark.parametrize("came", [IMAGE[:-1], b"", IMAGE + b"more"])
def test_what_is_not_the_image_is_never_written(serve: Serve, tmp_path: Path, came: bytes) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"the one before")
    server = serve(DONE, leads_to(serve(Answer(body=came))))
    with client_of(server) as client, pytest.raises(DownloadError, match="SHA-256"):
        client.download("job_1", target)
    assert target.read_bytes() == b"the one before"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("first", [Answer(lose=True), Answer(403, b"expired"), Answer(body=IMAGE[:3])])
def test_a_download_that_failed_is_begun_again_with_a_fresh_link(
    serve: Serve, tmp_path: Path, first: Answer
) -> None:
    store = serve(first, Answer(body=IMAGE))
    server = serve(DONE, leads_to(store))
    with client_of(server, max_retries=1) as client:
        assert client.download("job_1", tmp_path / "a.png").read_bytes() == IMAGE
    assert [one.path for one in server.asked] == ["/v1/jobs/job_1", *["/v1/jobs/job_1/images/0"] * 2]


def test_a_message_names_no_credentials(serve: Serve, tmp_path: Path) -> None:
    server = serve(DONE, leads_to(serve(Answer(lose=True))))
    with client_of(server) as client, pytest.raises(Exception, match="/bucket/image") as failed:
        client.download("job_1", tmp_path / "a.png")
    assert "signature" not in str(failed.value)


def test_a_job_without_an_image_says_why(serve: Serve, tmp_path: Path) -> None:
    with (
        client_of(serve(job_answer("expired", images=[]))) as client,
        pytest.raises(JobNotSucceededError, match="job_1 is expired"),
    ):
        client.download("job_1", tmp_path / "a.png")
    with (
        client_of(serve(DONE, problem_answer(404, "image_not_found"))) as client,
        pytest.raises(NotFoundError),
    ):
        client.download("job_1", tmp_path / "a.png", index=3)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_ordinary_file_is_written_to_and_not_replaced(serve: Serve, tmp_path: Path) -> None:
    server = serve(DONE, leads_to(serve(Answer(body=IMAGE))))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with client_of(server) as client:
        client.download("job_1", pipe)
    assert os.read(reader, 100) == IMAGE
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_to_a_file_stays_a_link(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to("real.png")
    server = serve(DONE, leads_to(serve(Answer(body=IMAGE))))
    with client_of(server) as client:
        client.download("job_1", tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").read_bytes() == IMAGE


def test_the_asynchronous_client_does_the_same(serve: Serve, tmp_path: Path) -> None:
    store = serve(Answer(body=IMAGE[:2]), Answer(body=IMAGE))
    server = serve(DONE, leads_to(store))

    async def download() -> Path:
        async with AsyncClient(url=server.url, api_key="calo_secret", max_retries=1) as client:
            return await client.download("job_1", tmp_path / "a.png")

    assert asyncio.run(download()).read_bytes() == IMAGE
    assert store.headers("Authorization") == [None, None]


def test_the_log_of_httpx2_shows_no_signature_of_a_link(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor where the store redirects to; the query itself is sent."""
    caplog.set_level("INFO", logger="httpx2")

    def served() -> tuple[Server, Server]:
        store = serve(Answer(302, headers={"Location": "/elsewhere?signature=def"}), Answer(body=IMAGE))
        return store, serve(DONE, leads_to(store))

    async def fetched(server: Server) -> bytes:
        async with AsyncClient(url=server.url, api_key="calo_secret") as client:
            return await client.image("job_1")

    store, server = served()
    with client_of(server) as client:
        assert client.image("job_1") == IMAGE
    other_store, other_server = served()
    assert asyncio.run(fetched(other_server)) == IMAGE
    for one in (store, other_store):
        assert [asked.path for asked in one.asked] == [
            "/bucket/image?signature=abc",
            "/elsewhere?signature=def",
        ]
    assert caplog.text.count("/bucket/image") == caplog.text.count("/elsewhere") == 2
    assert "signature" not in caplog.text
