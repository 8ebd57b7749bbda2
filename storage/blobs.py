"""Images in an S3-compatible store. The only file that knows boto3.

Keys are the caller's; an object is written once and never changed. Presigned links are minted at
read time for the address that clients see, and are never stored.
"""

import base64
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from storage.errors import BlobConflict, BlobError, BlobUnavailable

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

PRECONDITION_FAILED = 412


@dataclass(frozen=True)
class Stored:
    """What lies under a key now."""

    key: str
    sha256: str
    num_bytes: int


class Blobs:
    """One bucket; safe to share between threads, as boto3's clients are."""

    def __init__(
        self,
        *,
        endpoint: str,
        public_endpoint: str,
        region: str,
        access_key: str,
        secret_key: str,
        bucket: str,
        max_connections: int = 32,
    ) -> None:
        self.bucket = bucket

        def client(url: str) -> "S3Client":
            made: S3Client = boto3.client(
                "s3",
                endpoint_url=url,
                region_name=region,
                aws_access_key_id=access_key,
                aws_secret_access_key=secret_key,
                config=Config(
                    signature_version="s3v4",
                    s3={"addressing_style": "path"},
                    retries={"mode": "standard", "max_attempts": 5},
                    connect_timeout=3,
                    read_timeout=30,
                    max_pool_connections=max_connections,
                ),
            )
            return made

        self._client = client(endpoint)
        # The host is part of the signature: links are signed for the address that clients use.
        self._signer = client(public_endpoint or endpoint)

    def put(self, key: str, data: bytes, *, content_type: str, budget_seconds: float) -> Stored:
        """Write an object that must not exist yet (`If-None-Match: *`), with its checksum.

        Tries again within the budget; a 412 on our own earlier try is recognised by size and digest.
        Raises `BlobUnavailable` or `BlobConflict`.
        """
        digest = hashlib.sha256(data)
        stored = Stored(key, digest.hexdigest(), len(data))
        tries = Retrying(
            retry=retry_if_exception_type(BlobUnavailable),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            stop=stop_after_delay(budget_seconds),
            reraise=True,
        )
        for attempt in tries:
            with attempt, _translated():
                try:
                    self._client.put_object(
                        Bucket=self.bucket,
                        Key=key,
                        Body=data,
                        ContentType=content_type,
                        IfNoneMatch="*",
                        ChecksumSHA256=base64.b64encode(digest.digest()).decode(),
                        Metadata={"sha256": stored.sha256},
                    )
                except ClientError as error:
                    if _status(error) != PRECONDITION_FAILED:
                        raise
                    if self._look(key) != stored:
                        raise BlobConflict(f"another object holds the key {key!r}") from error
        return stored

    def _look(self, key: str) -> Stored:
        head = self._client.head_object(Bucket=self.bucket, Key=key)
        return Stored(key, head["Metadata"].get("sha256", ""), head["ContentLength"])

    def get(self, key: str) -> bytes:
        """The object's bytes; raises `BlobError`."""
        with _translated():
            return self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def presign(self, key: str, *, seconds: int, filename: str, content_type: str) -> str:
        """A GET link that works for `seconds` (SigV4 in the query); neither name is ever a client's."""
        return self._signer.generate_presigned_url(
            "get_object",
            Params={
                "Bucket": self.bucket,
                "Key": key,
                "ResponseContentDisposition": f'inline; filename="{filename}"',
                "ResponseContentType": content_type,
            },
            ExpiresIn=seconds,
        )

    def check(self) -> None:
        """Raise `BlobError` unless the bucket answers."""
        with _translated():
            self._client.head_bucket(Bucket=self.bucket)

    def wait_until_ready(self, seconds: float) -> None:
        """Return once the bucket answers; raises the last `BlobError` when it does not in time."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.check()
            except BlobError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


@contextmanager
def _translated() -> Iterator[None]:
    """botocore's errors as ours: what failed on the store's side, or on the way, can be tried again."""
    try:
        yield
    except ClientError as error:
        if _status(error) >= 500 or _status(error) in (408, 429):
            raise BlobUnavailable(str(error)) from error
        raise BlobError(str(error)) from error
    except BotoCoreError as error:
        raise BlobUnavailable(str(error)) from error


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
