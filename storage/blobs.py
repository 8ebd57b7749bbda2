"""Stores images and input files in an S3-compatible store. The only module that uses boto3.

Callers choose keys; an object is written once and never changed. Presigned links are created when they are
read, for the address that clients use, and are never stored.
"""

import base64
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import boto3
import structlog
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
)
from tenacity import Retrying, retry_if_exception, wait_random_exponential

from storage.deadlines import BoundedCalls
from storage.errors import BlobConflict, BlobError, BlobNotFound, BlobRefused, BlobUnavailable

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

log = structlog.get_logger()

Result = TypeVar("Result")

PRECONDITION_FAILED = 412
PROBE_KEY = ".calotype/probe"
CHECK_PREFIX, CHECK_BYTES = ".calotype/check-", b"calotype config check"
CONNECT_SECONDS, READ_SECONDS = 3, 10
CALL_SECONDS = 15.0
"""The longest time that one call may take, however slowly its response arrives."""
CHECK_SECONDS = 3.0
REFUSED_SECONDS = 15.0
"""How long an upload that the store refuses is retried; later, another worker may have a valid key."""
LOUD_SECONDS = 60.0
MAX_SKEW_SECONDS = 60.0
"""The least clock skew that error messages mention. S3 itself refuses more than 15 minutes."""


@dataclass(frozen=True)
class Stored:
    """A stored object: its key, the digest of its bytes in hexadecimal, and their number."""

    key: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class Listed:
    """An object in a listing, with its age by the store's clock."""

    key: str
    age_seconds: float


@dataclass(frozen=True)
class Page:
    """A page of objects in the order of their keys; empty only at the end of the listing."""

    objects: list[Listed]
    is_last: bool


class Blobs:
    """One bucket; safe to share between threads, as boto3's clients are.

    Over https the store's certificate is verified against `ca_file`, or the authorities that botocore trusts.
    Without keys the credentials are those that botocore finds: variables, files, or the role of the machine.
    With `virtual` addressing the bucket is part of the host name.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        public_endpoint: str,
        region: str,
        access_key: str,
        secret_key: str,
        session_token: str = "",
        addressing: Literal["path", "virtual"] = "path",
        bucket: str,
        max_connections: int = 32,
        ca_file: Path | None = None,
    ) -> None:
        self.bucket = bucket
        # botocore limits the wait for each byte, not for a whole response.
        self._calls = BoundedCalls(max_connections, "s3")
        self._refused_at = -LOUD_SECONDS

        def client(url: str) -> "S3Client":
            made: S3Client = boto3.client(
                "s3",
                endpoint_url=url,
                region_name=region,
                aws_access_key_id=access_key or None,
                aws_secret_access_key=secret_key or None,
                aws_session_token=session_token or None,
                verify=str(ca_file) if ca_file else None,
                config=Config(
                    signature_version="s3v4",
                    s3={"addressing_style": addressing},
                    retries={"total_max_attempts": 1},  # `put` retries by itself, within its budget
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=READ_SECONDS,
                    tcp_keepalive=True,
                    max_pool_connections=max_connections,
                ),
            )
            return made

        self._client = client(endpoint)
        # The host is part of the signature, so links are signed for the address that clients use.
        self._signer = client(public_endpoint or endpoint)

    def put(self, key: str, data: bytes, *, content_type: str, budget_seconds: float) -> Stored:
        """Write an object that must not exist yet (`If-None-Match: *`), with its checksum.

        Retries within the budget, and for at most `REFUSED_SECONDS` if the store refuses. A 412 caused by our
        own earlier attempt is recognised by size and digest. Raises `BlobUnavailable`, `BlobRefused` or
        `BlobConflict`.
        """
        stored = Stored(key, hashlib.sha256(data).hexdigest(), len(data))
        began_at = time.monotonic()

        def is_worth_another_try(error: BaseException) -> bool:
            seconds = (
                min(REFUSED_SECONDS, budget_seconds) if isinstance(error, BlobRefused) else budget_seconds
            )
            return isinstance(error, BlobUnavailable) and time.monotonic() - began_at < seconds

        tries = Retrying(
            retry=retry_if_exception(is_worth_another_try),
            wait=wait_random_exponential(multiplier=0.2, max=2),
            reraise=True,
        )
        for attempt in tries:
            with attempt:
                try:
                    self._ask(lambda: self._send(key, data, content_type, stored.sha256))
                except _Exists:
                    if self._look(key) != stored:
                        raise BlobConflict(f"another object holds the key {key!r}") from None
        return stored

    def _send(self, key: str, data: bytes, content_type: str, sha256: str) -> None:
        self._client.put_object(
            Bucket=self.bucket,
            Key=key,
            Body=data,
            ContentType=content_type,
            IfNoneMatch="*",
            ChecksumSHA256=base64.b64encode(bytes.fromhex(sha256)).decode(),
            Metadata={"sha256": sha256},
        )

    def _look(self, key: str) -> Stored:
        head = self._ask(lambda: self._client.head_object(Bucket=self.bucket, Key=key))
        return Stored(key, head["Metadata"].get("sha256", ""), head["ContentLength"])

    def get(self, key: str) -> bytes:
        """The object's bytes; raises `BlobError`."""
        return self._ask(lambda: self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def num_bytes(self, key: str) -> int:
        """The size of the object in bytes; raises `BlobError`."""
        return self._look(key).num_bytes

    def delete(self, key: str) -> None:
        """Delete an object; a missing one is no error. Raises `BlobError`."""
        self._ask(lambda: self._client.delete_object(Bucket=self.bucket, Key=key))

    def list_page(self, *, after: str = "", max_keys: int = 1000) -> Page:
        """List objects with keys after `after`, at most 1,000; raises `BlobError`."""
        answer = self._ask(
            lambda: self._client.list_objects_v2(Bucket=self.bucket, StartAfter=after, MaxKeys=max_keys)
        )
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        objects = [
            Listed(one["Key"], (now - one["LastModified"]).total_seconds())
            for one in answer.get("Contents", ())
        ]
        return Page(objects, is_last=not (answer["IsTruncated"] and objects))

    def presign(
        self, key: str, *, seconds: int, filename: str, content_type: str, for_head: bool = False
    ) -> str:
        """A link that is valid for `seconds` (SigV4 in the query); `filename` must not come from a client.

        The method is part of the signature, so a link is for either `GET` or `HEAD`. Raises `BlobRefused` if
        there are no credentials.
        """
        operation = "head_object" if for_head else "get_object"
        return self._sign(
            operation,
            seconds,
            Key=key,
            ResponseContentDisposition=f'inline; filename="{filename}"',
            ResponseContentType=content_type,
        )

    def presign_put(
        self, key: str, *, seconds: int, sha256: str, num_bytes: int, content_type: str
    ) -> tuple[str, dict[str, str]]:
        """A link by which exactly these bytes can be uploaded, and the headers to send with them.

        Length, type and digest are signed, and the store checks the digest of the bytes. If the key exists,
        it answers 412 and keeps the existing object.
        """
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        url = self._sign(
            "put_object",
            seconds,
            Key=key,
            ContentLength=num_bytes,
            ContentType=content_type,
            ChecksumSHA256=checksum,
            IfNoneMatch="*",
        )
        return url, {
            "Content-Length": str(num_bytes),
            "Content-Type": content_type,
            "x-amz-checksum-sha256": checksum,
            "If-None-Match": "*",
        }

    def _sign(self, operation: str, seconds: int, **parameters: object) -> str:
        try:
            with _translated(self.bucket):
                url: str = self._signer.generate_presigned_url(
                    operation, Params={"Bucket": self.bucket, **parameters}, ExpiresIn=seconds
                )
                return url
        except BlobRefused as error:
            self._log_refusal(error)
            raise

    def check(self) -> None:
        """Raise `BlobError` unless the store answers, accepts our key and has the bucket.

        It reads an object that need not exist; a key without the right to list gets `AccessDenied` then.
        """
        try:
            self._ask(
                lambda: self._client.get_object(Bucket=self.bucket, Key=PROBE_KEY)["Body"].close(),
                seconds=CHECK_SECONDS,
            )
        except BlobRefused as error:
            if error.reason != "AccessDenied":
                raise
        except BlobNotFound:
            return

    def try_out(self) -> frozenset[str]:
        """Find out which of `write`, `read`, `list` and `delete` our key may do, by trying each.

        The object that it writes is deleted if the key may do that, else by the sweeper. Raises `BlobError`
        if the store does not answer, does not know the key, returns other bytes or overwrites the object.
        """
        key = CHECK_PREFIX + secrets.token_hex(8)  # unique, since several checks may run at once
        may: dict[str, Callable[[], object]] = {
            "write": lambda: self._send_check(key, CHECK_BYTES),
            "read": lambda: self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read(),
            "list": lambda: self._client.list_objects_v2(Bucket=self.bucket, MaxKeys=1),
        }
        rights: set[str] = set()
        try:
            rights.update(name for name, call in may.items() if self._is_allowed(call))
            if "write" in rights:
                self._check_no_overwriting(key)
            if rights >= {"write", "read"} and self.get(key) != CHECK_BYTES:
                raise BlobRefused("the store returns different bytes than were written", reason="Corrupted")
        finally:
            if self._is_allowed(lambda: self._client.delete_object(Bucket=self.bucket, Key=key)):
                rights.add("delete")
        return frozenset(rights)

    def _check_no_overwriting(self, key: str) -> None:
        try:
            self._ask(lambda: self._send_check(key, b"other"))
        except _Exists:
            return
        raise BlobRefused(
            "the store overwrites an object although If-None-Match: * forbids it", reason="Overwritten"
        )

    def _send_check(self, key: str, data: bytes) -> None:
        self._send(key, data, "application/octet-stream", hashlib.sha256(data).hexdigest())

    def _is_allowed(self, call: Callable[[], object]) -> bool:
        try:
            with _translated(self.bucket):
                self._calls.call(call, CHECK_SECONDS)
        except BlobRefused as error:
            if error.reason != "AccessDenied":
                raise
            return False
        except BlobNotFound:
            pass
        return True

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until the bucket answers; raises the last `BlobError` after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.check()
            except BlobError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _ask(self, call: Callable[[], Result], *, seconds: float = CALL_SECONDS) -> Result:
        try:
            with _translated(self.bucket):
                return self._calls.call(call, seconds)
        except BlobRefused as error:
            self._log_refusal(error)
            raise
        except BlobUnavailable as error:
            if not isinstance(error.__cause__, ClientError):
                # If one connection to a store that does not answer is dead, the idle ones are dead too.
                self._client.close()
            raise

    def _log_refusal(self, error: BlobRefused) -> None:
        # Every upload fails until an administrator acts: one log line a minute is enough.
        now = time.monotonic()
        if now - self._refused_at >= LOUD_SECONDS:
            self._refused_at = now
            log.error("storage_refused", reason=error.reason, error=str(error), bucket=self.bucket)


class _Exists(Exception):
    """The key exists already."""


@contextmanager
def _translated(bucket: str) -> Iterator[None]:
    """Translate botocore's errors to ours; failures of the store or the network are retryable."""
    try:
        yield
    except ClientError as error:
        status, reason = _status(error), str(error.response.get("Error", {}).get("Code", ""))
        if status == PRECONDITION_FAILED:
            raise _Exists from error
        if status == 404 and reason != "NoSuchBucket":
            raise BlobNotFound(str(error)) from error
        if (status >= 500 and status != 501) or status in (408, 409, 429):
            raise BlobUnavailable(str(error)) from error
        raise BlobRefused(_refusal(error, reason, bucket), reason=reason) from error
    except (NoCredentialsError, CredentialRetrievalError, PartialCredentialsError) as error:
        raise BlobRefused(
            f"there are no credentials for the store: {error}", reason="NoCredentials"
        ) from error
    except (BotoCoreError, TimeoutError) as error:
        raise BlobUnavailable(str(error)) from error


def _refusal(error: ClientError, reason: str, bucket: str) -> str:
    """The store's message, with a hint for an administrator."""
    hints = {
        "InvalidAccessKeyId": "it does not know the access key: was it rotated?",
        "SignatureDoesNotMatch": "the secret key is wrong: was it rotated?",
        "AccessDenied": "the key has no right to do this",
        "NoSuchBucket": f"there is no bucket {bucket!r}",
        "RequestTimeTooSkewed": "its clock and ours differ",
        "NotImplemented": "it does not support If-None-Match and SHA-256 checksums, which calotype needs",
    }
    hint = f" ({hints[reason]})" if reason in hints else ""
    skew_seconds = _skew_seconds(error)
    if abs(skew_seconds) > MAX_SKEW_SECONDS:
        side = "ahead of" if skew_seconds > 0 else "behind"
        hint += f"; this machine's clock is {abs(skew_seconds):.0f} s {side} the store's"
    return f"the store refuses: {error}{hint}"


def _skew_seconds(error: ClientError) -> float:
    """How far our clock is ahead of the store's `Date` header, in seconds; 0 without one."""
    date = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        return (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
    except (ValueError, TypeError):
        return 0.0


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
