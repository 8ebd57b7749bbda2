"""Why the front turns a request away before any view sees it, each with its HTTP status and stable code.

Refused
 ├─ BadFraming      400 bad_request
 ├─ BodyTooSlow     408 request_timeout
 ├─ HeaderTooLarge  431 request_header_fields_too_large
 ├─ UnknownMethod   501 not_implemented
 ├─ UnknownCoding   501 not_implemented
 ├─ Busy            503 busy
 └─ UnknownVersion  505 http_version_not_supported
"""

import asyncio
import json
from collections import Counter
from http import HTTPStatus

import structlog

from storage.identifiers import new_id

log = structlog.get_logger()

RETRY_AFTER_SECONDS = 2
LOG_SECONDS = 1.0


class Refused(Exception):
    """Base of the tree."""

    status = 400
    code = "bad_request"
    closes = True
    """Whether the connection ends with the answer, since what follows on it cannot be told."""


class BadFraming(Refused):
    """Where this request ends and the next begins is ambiguous (RFC 9112, section 6.3)."""


class BodyTooSlow(Refused):
    """The body was not whole within its deadline."""

    status = 408
    code = "request_timeout"


class HeaderTooLarge(Refused):
    """The header has too many bytes or fields (RFC 6585, section 5)."""

    status = 431
    code = "request_header_fields_too_large"


class UnknownMethod(Refused):
    """No method of HTTP is written like this (RFC 9110, sections 9.1 and 15.6.2)."""

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
    """Every thread is taken and the queue is full."""

    status = 503
    code = "busy"
    closes = False


class RefusalLog:
    """Logs how many requests were turned away, once a second for each reason. Used on the event loop.

    A line for each would let whoever holds no key fill the log, and have the loop wait for the log's lock.
    """

    def __init__(self, *, log_seconds: float = LOG_SECONDS) -> None:
        self._log_seconds = log_seconds
        self._counts: Counter[tuple[int, str]] = Counter()

    def note(self, refused: Refused) -> None:
        """One more."""
        if not self._counts:
            asyncio.get_running_loop().call_later(self._log_seconds, self._say)
        self._counts[refused.status, refused.code] += 1

    def _say(self) -> None:
        counts, self._counts = self._counts, Counter()
        for (status, code), count in counts.items():
            log.info("requests_refused", status=status, code=code, count=count)


def own_headers(content_type: bytes, body: bytes) -> list[tuple[bytes, bytes]]:
    """Of an answer that no view gives."""
    return [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]


def problem(refused: Refused) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of an RFC 9457 answer, in the shape of `web.errors`."""
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
