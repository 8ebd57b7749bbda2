"""The promises about images, on a real S3 server."""

import hashlib
import secrets

import httpx2
import pytest

from local.endpoints import Embedded
from storage.blobs import Blobs
from storage.errors import BlobConflict, BlobError, BlobUnavailable


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


def test_a_missing_object_is_a_blob_error(blobs: Blobs, key: str) -> None:
    with pytest.raises(BlobError):
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
