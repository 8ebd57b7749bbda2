"""The promises about images, on a real S3 server."""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from local.endpoints import Embedded
from storage.blobs import Blobs
from storage.errors import BlobConflict, BlobNotFound, BlobRefused, BlobUnavailable
from tests.paused import paused


def put(blobs: Blobs, key: str, data: bytes = b"picture") -> str:
    return blobs.put(key, data, content_type="image/png", budget_seconds=10).sha256


@pytest.fixture
def key() -> str:
    return f"test/{secrets.token_hex(8)}.png"


def test_what_was_put_is_got_back(blobs: Blobs, key: str) -> None:
    assert put(blobs, key) == hashlib.sha256(b"picture").hexdigest()
    assert blobs.get(key) == b"picture"


def test_our_own_second_try_is_recognised(blobs: Blobs, key: str) -> None:
    assert put(blobs, key) == put(blobs, key)


def test_another_objects_key_is_never_overwritten(blobs: Blobs, key: str) -> None:
    put(blobs, key, b"first")
    with pytest.raises(BlobConflict):
        put(blobs, key, b"other")
    assert blobs.get(key) == b"first"


def test_a_presigned_link_shows_one_image_and_nothing_else(blobs: Blobs, key: str) -> None:
    put(blobs, key)
    link = blobs.presign(key, seconds=60, filename="a.webp", content_type="image/webp")
    answer = httpx2.get(link, trust_env=False)
    assert (answer.status_code, answer.content) == (200, b"picture")
    assert answer.headers["content-type"] == "image/webp"
    assert 'filename="a.webp"' in answer.headers["content-disposition"]
    assert httpx2.get(link.partition("?")[0], trust_env=False).status_code == 403
    assert httpx2.get(link.replace(key, key + "x"), trust_env=False).status_code == 403
    assert httpx2.put(link, content=b"mine", trust_env=False).status_code in (400, 403, 405)


@pytest.fixture
def without_keys(services: Embedded, monkeypatch: pytest.MonkeyPatch) -> Blobs:
    """Blobs that are given no keys, on a machine that has none either."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return like(services, access_key="", secret_key="")


def like(services: Embedded, **changes: Any) -> Blobs:
    """The real bucket, reached in another way."""
    usual: dict[str, Any] = {
        "endpoint": services.s3_endpoint,
        "public_endpoint": services.s3_endpoint,
        "region": services.s3_region,
        "access_key": services.s3_access_key,
        "secret_key": services.s3_secret_key,
        "bucket": services.bucket,
    }
    return Blobs(**{**usual, **changes})


def test_without_keys_the_machines_own_credentials_are_used(
    services: Embedded, without_keys: Blobs, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BlobRefused, match="there are no credentials for the store") as raised:
        without_keys.get(key)
    assert raised.value.reason == "NoCredentials"
    with pytest.raises(BlobRefused, match="there are no credentials for the store"):
        without_keys.presign(key, seconds=60, filename="a.png", content_type="image/png")
    with pytest.raises(BlobRefused, match="there are no credentials for the store"):
        without_keys.presign_put(key, seconds=60, sha256="00" * 32, num_bytes=1, content_type="image/png")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", services.s3_access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", services.s3_secret_key)
    found = like(services, access_key="", secret_key="")
    put(found, key)
    assert found.get(key) == b"picture"


def test_the_bucket_is_part_of_the_path_or_of_the_host(services: Embedded, key: str) -> None:
    public = "https://s3.example.org"
    for addressing, expected in (
        ("path", f"{public}/{services.bucket}/{key}"),
        ("virtual", f"https://{services.bucket}.s3.example.org/{key}"),
    ):
        blobs = like(services, public_endpoint=public, addressing=addressing)
        link = blobs.presign(key, seconds=60, filename="a.png", content_type="image/png")
        assert link.startswith(f"{expected}?")


def test_a_session_token_is_part_of_every_link(services: Embedded, key: str) -> None:
    blobs = like(services, session_token="temporary")
    link = blobs.presign(key, seconds=60, filename="a.png", content_type="image/png")
    assert "X-Amz-Security-Token=temporary" in link


def test_a_missing_object_is_a_blob_error(blobs: Blobs, key: str) -> None:
    with pytest.raises(BlobNotFound):
        blobs.get(key)


def test_a_dead_store_is_retryable_and_named(services: Embedded, key: str) -> None:
    dead = Blobs(
        endpoint="http://127.0.0.1:9",
        public_endpoint="",
        region="us-east-1",
        access_key="a",
        secret_key="b",
        bucket=services.bucket,
    )
    with pytest.raises(BlobUnavailable):
        dead.put(key, b"x", content_type="image/png", budget_seconds=0.1)


def of(services: Embedded, **changes: Any) -> Blobs:
    known = {
        "endpoint": services.s3_endpoint,
        "public_endpoint": "",
        "region": "us-east-1",
        "access_key": services.s3_access_key,
        "secret_key": services.s3_secret_key,
        "bucket": services.bucket,
    }
    return Blobs(**{**known, **changes})


@pytest.mark.parametrize(
    ("changes", "reason", "said"),
    [
        ({"access_key": "rotated"}, "InvalidAccessKeyId", "was it rotated"),
        ({"secret_key": "rotated"}, "SignatureDoesNotMatch", "was it rotated"),
    ],
)
def test_S32_a_store_that_refuses_our_key_can_be_tried_again_and_is_said_loudly(
    services: Embedded, key: str, changes: dict[str, str], reason: str, said: str
) -> None:
    refused = of(services, **changes)
    with capture_logs() as events:
        with pytest.raises(BlobRefused, match=said) as caught:
            refused.put(key, b"x", content_type="image/png", budget_seconds=1)
        with pytest.raises(BlobRefused):
            refused.check()
    assert (caught.value.retryable, caught.value.reason) == (True, reason)
    loud = [event for event in events if event["event"] == "storage_refused"]
    assert [event["log_level"] for event in loud] == ["error"], "once a minute, however often it happens"
    assert loud[0]["reason"] == reason


def test_S32_a_key_that_is_right_again_within_the_budget_stores_the_image(
    services: Embedded, key: str
) -> None:
    """As when keys are rotated at the store before they are here."""
    blobs = of(services)
    wrong = threading.Event()
    wrong.set()

    def spoil(request: Any, **_: Any) -> None:
        if wrong.is_set():
            request.headers["Authorization"] = request.headers["Authorization"][:-4] + b"beef"
            wrong.clear()

    blobs._client.meta.events.register_last("before-send.s3.PutObject", spoil)
    blobs.put(key, b"x", content_type="image/png", budget_seconds=10)
    assert not wrong.is_set()
    assert blobs.get(key) == b"x"


Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def make_store() -> Iterator[Callable[[Answer], str]]:
    """Starts look-alikes of S3 that answer every request alike; gives back their addresses."""
    servers: list[ThreadingHTTPServer] = []

    def make(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # which answers "Expect: 100-continue"; botocore waits 1 s for it

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer(self)

            do_GET = do_HEAD = do_DELETE = do_PUT

            def log_message(self, *_: Any) -> None:
                return

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def refusing(status: int, code: str, date: str | None = None) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        handler.send_response_only(status)
        if date:
            handler.send_header("Date", date)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_S32_a_clock_that_is_wrong_is_named_with_how_far_it_is(
    services: Embedded, make_store: Callable[[Answer], str], key: str
) -> None:
    late = refusing(403, "RequestTimeTooSkewed", "Sat, 28 Nov 2020 12:00:00 GMT")
    store = of(services, endpoint=make_store(late))
    with pytest.raises(BlobRefused, match=r"this machine's clock is \d+ s ahead of the store's") as caught:
        store.put(key, b"x", content_type="image/png", budget_seconds=0.1)
    assert caught.value.reason == "RequestTimeTooSkewed"


@pytest.mark.parametrize(
    ("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument"), (404, "NoSuchBucket")]
)
def test_S31_a_store_that_lacks_what_we_need_fails_no_job_for_good(
    services: Embedded, make_store: Callable[[Answer], str], key: str, status: int, code: str
) -> None:
    store = of(services, endpoint=make_store(refusing(status, code)))
    with pytest.raises(BlobRefused, match=code):
        store.put(key, b"x", content_type="image/png", budget_seconds=0.1)
    with pytest.raises(BlobRefused, match=code):
        store.try_out()


def test_S31_a_store_is_tried_out_with_everything_that_is_asked_of_it(services: Embedded) -> None:
    assert of(services).try_out() == {"write", "read", "list", "delete"}


def test_S31_a_store_is_tried_out_by_the_very_write_that_an_image_needs(services: Embedded) -> None:
    blobs, sent = of(services), []
    blobs._client.meta.events.register_last(
        "request-created.s3.PutObject", lambda request, **_: sent.append(dict(request.headers))
    )
    blobs.try_out()
    assert len(sent) == 2
    assert all({"If-None-Match", "x-amz-checksum-sha256"} <= set(headers) for headers in sent)


def test_S31_two_checks_at_once_are_none_of_each_others_business(services: Embedded) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(of(services).try_out) for _ in range(8)]
        assert {rights.result() for rights in found} == {frozenset({"write", "read", "list", "delete"})}


def test_S31_a_store_that_overwrites_is_found_out(services: Embedded) -> None:
    kept: dict[str, bytes] = {}

    class Overwrites(Blobs):
        def get(self, key: str) -> bytes:
            kept.setdefault("first", super().get(key))
            return kept["first"]

    blobs = Overwrites(
        endpoint=services.s3_endpoint,
        public_endpoint="",
        region="us-east-1",
        access_key=services.s3_access_key,
        secret_key=services.s3_secret_key,
        bucket=services.bucket,
    )

    def forget_the_condition(request: Any, **_: Any) -> None:
        del request.headers["If-None-Match"]

    blobs._client.meta.events.register_first("request-created.s3.PutObject", forget_the_condition)
    with pytest.raises(BlobRefused, match="If-None-Match"):
        blobs.try_out()


def test_S1_a_hung_store_is_given_up_in_time_and_used_again(services: Embedded, key: str) -> None:
    blobs = of(services)
    blobs.check()
    with paused(services.pid("s3")):
        began_at = time.monotonic()
        with pytest.raises(BlobUnavailable):
            blobs.check()
        assert time.monotonic() - began_at < 10
    blobs.put(key, b"x", content_type="image/png", budget_seconds=20)
    assert blobs.get(key) == b"x"


def test_S1_an_answer_that_drips_is_given_up_as_well(
    services: Embedded, make_store: Callable[[Answer], str]
) -> None:
    """Each byte comes in time, the answer never does."""
    done = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not done.wait(0.1):
            handler.wfile.write(b"x")

    store = of(services, endpoint=make_store(drip))
    with pytest.raises(BlobUnavailable):
        store.check()
    done.set()
