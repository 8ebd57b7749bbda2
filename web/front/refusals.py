"""The reasons for which the front refuses a request before a view sees it, with HTTP status and stable code.

Refused
 ├─ BadFraming      400 bad_request
 ├─ BodyTooSlow     408 request_timeout
 ├─ HeaderTooLarge  431 request_header_fields_too_large
 ├─ UnknownMethod   501 not_implemented
 ├─ UnknownCoding   501 not_implemented
 ├─ Busy            503 busy
 ├─ DiskFull        503 disk_full
 └─ UnknownVersion  505 http_version_not_supported
"""

import asyncio
import json
from collections import Counter
from http import HTTPStatus

import structlog

from storage.identifiers import new_id
from storage.temporary_space import TemporarySpaceFull

log = structlog.get_logger()

RETRY_AFTER_SECONDS = 2
LOG_SECONDS = 1.0


class Refused(Exception):
    """Base of the tree."""

    status = 400
    code = "bad_request"
    closes = True
    """Whether the connection ends with the answer, because what follows on it cannot be parsed."""


class BadFraming(Refused):
    """The end of this request is ambiguous (RFC 9112, section 6.3)."""


class BodyTooSlow(Refused):
    """The body was not complete within its deadline."""

    status = 408
    code = "request_timeout"


class HeaderTooLarge(Refused):
    """The header has too many bytes or fields (RFC 6585, section 5)."""

    status = 431
    code = "request_header_fields_too_large"


class UnknownMethod(Refused):
    """The method is not a valid HTTP method (RFC 9110, sections 9.1 and 15.6.2)."""

    status = 501
    code = "not_implemented"
    closes = False


class UnknownCoding(Refused):
    """The body is in a transfer coding other than chunked (RFC 9112, section 6.1)."""

    status = 501
    code = "not_implemented"


class UnknownVersion(Refused):
    """The major version of HTTP is not 1 (RFC 9110, section 15.6.6)."""

    status = 505
    code = "http_version_not_supported"


class Busy(Refused):
    """All threads are busy and the queue is full."""

    status = 503
    code = "busy"
    closes = False


class DiskFull(Refused):
    """There is no room for the body on the disk of temporary files."""

    status = 503
    code = TemporarySpaceFull.code
    closes = False


class RefusalLog:
    """Logs once a second, for each reason, how many requests were refused. Used on the event loop.

    One line for each request would let clients without a key fill the log and block the event loop.
    """

    def __init__(self, *, log_seconds: float = LOG_SECONDS) -> None:
        self._log_seconds = log_seconds
        self._counts: Counter[tuple[int, str]] = Counter()

    def note(self, refused: Refused) -> None:
        """Count one refusal."""
        if not self._counts:
            asyncio.get_running_loop().call_later(self._log_seconds, self._say)
        self._counts[refused.status, refused.code] += 1

    def _say(self) -> None:
        counts, self._counts = self._counts, Counter()
        for (status, code), count in counts.items():
            log.info("requests_refused", status=status, code=code, count=count)


def own_headers(content_type: bytes, body: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer that no view gives."""
    return [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]


def problem(refused: Refused) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of an RFC 9457 answer, in the shape of `web.problems`."""
    request_id = new_id("req")
    body = json.dumps(
        {
            "type": f"urn:calotype:problem:{refused.code}",
            "title": HTTPStatus(refused.status).phrase,
            "status": refused.status,
            "code": refused.code,
            "detail": str(refused),
            "request_id": request_id,
        }
    ).encode()
    headers = [*own_headers(b"application/problem+json", body), (b"x-request-id", request_id.encode())]
    if refused.status == 503:
        headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
    if refused.closes:
        headers.append((b"connection", b"close"))
    return headers, body
