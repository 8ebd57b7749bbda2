"""Sends one POST to an untrusted server within a time limit, and returns the start of the response.

It follows no redirects, decodes no content encoding, keeps no cookies and ignores proxies in the environment;
`tasks.webhooks.connection` checks addresses and enforces the deadline. It knows neither rows nor signatures.
"""

import re
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpcore2

from tasks.errors import AddressRefused, HeaderTooLarge, NameNotFound, PortRefused, TlsFailed
from tasks.webhooks.addresses import DEFAULT_PORTS, Network
from tasks.webhooks.connection import Budget, PinningBackend, Resolve, resolve_by_dns

ANSWER_BYTES = 2048
ANSWER_SECONDS = 3.0


@dataclass(frozen=True)
class Answer:
    """The response: a status and the start of the body, or else an `error_code`."""

    milliseconds: int
    status: int | None = None
    text: str | None = None
    retry_after_seconds: float | None = None
    error_code: str | None = None
    error_detail: str | None = None


class WebhookClient:
    """Posts within `timeout_seconds`, which include DNS, connection, TLS, request and response."""

    def __init__(
        self,
        *,
        timeout_seconds: float,
        allowed_networks: Sequence[Network] = (),
        ports: Sequence[int] = DEFAULT_PORTS,
        ca_file: Path | None = None,
        resolve: Resolve = resolve_by_dns,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._allowed = tuple(allowed_networks)
        self._ports = tuple(ports)
        self._resolve = resolve
        self._tls = ssl.create_default_context()
        if ca_file is not None:
            self._tls.load_verify_locations(ca_file)

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Post `body` and return the result; a failure of the receiver is a result too and raises nothing."""
        begun = time.monotonic()
        budget = Budget(begun + self._timeout_seconds)
        try:
            found = self._exchange(url, headers, body, budget)
        except Exception as error:
            code = next((code for kind, code in ATTEMPT_CODES.items() if isinstance(error, kind)), None)
            if code is None:
                raise
            found = {"error_code": code, "error_detail": _printable(str(error) or type(error).__name__)[:300]}
        return Answer(milliseconds=round((time.monotonic() - begun) * 1000), **found)

    def _exchange(self, url: str, headers: Mapping[str, str], body: bytes, budget: Budget) -> dict[str, Any]:
        parts = urlsplit(url)
        if parts.scheme != "https" or "@" in parts.netloc:
            raise AddressRefused("webhooks are only sent to https URLs without a user name")
        backend = PinningBackend(self._resolve, self._allowed, self._ports, budget)
        sent = {"Host": parts.netloc, "Accept-Encoding": "identity", "Connection": "close", **headers}
        # A new pool for every attempt, so that receivers share no connections, cookies or failures.
        with (
            httpcore2.ConnectionPool(self._tls, max_connections=1, network_backend=backend) as pool,
            pool.stream("POST", as_sent(parts), headers=list(sent.items()), content=body) as response,
        ):
            text = _beginning(response, budget)
            return {
                "status": response.status,
                "text": text,
                "retry_after_seconds": _retry_after(response),
            }


ATTEMPT_CODES: dict[type[Exception], str] = {
    **{kind: kind.code for kind in (AddressRefused, PortRefused, NameNotFound, TlsFailed, HeaderTooLarge)},
    UnicodeError: NameNotFound.code,
    httpcore2.TimeoutException: "timeout",
    httpcore2.ConnectError: "connection_failed",
    httpcore2.NetworkError: "connection_lost",
    httpcore2.ProtocolError: "answer_malformed",
}


def as_sent(parts: SplitResult) -> httpcore2.URL:
    """The URL unchanged; when the library parses a string, it drops `;parameters` of the path."""
    target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    return httpcore2.URL(
        scheme=b"https",
        host=(parts.hostname or "").rstrip(".").encode("ascii"),
        port=parts.port,
        target=target.encode("ascii"),
    )


def _beginning(response: httpcore2.Response, budget: Budget) -> str:
    """The first bytes of the body as text, without a long wait: the status alone decides the result."""
    budget.deadline = min(budget.deadline, time.monotonic() + ANSWER_SECONDS)
    data = b""
    with suppress(
        httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError, HeaderTooLarge
    ):
        for chunk in response.iter_stream():
            data += chunk
            if len(data) >= ANSWER_BYTES:
                break
    return _printable(data[:ANSWER_BYTES].decode("utf-8", errors="replace"))


def _printable(text: str) -> str:
    """Replace control characters, which must reach neither a row nor a terminal."""
    return re.sub(r"[^\n\t\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]", "\ufffd", text)


def _retry_after(response: httpcore2.Response) -> float | None:
    """RFC 9110 §10.2.3: seconds, or a date."""
    values = [value for name, value in response.headers if name.lower() == b"retry-after"]
    if not values:
        return None
    text = values[0].decode("latin-1").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        instant = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # OverflowError for a year out of range
        return None
    instant = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    return max(0.0, (instant - datetime.now(UTC)).total_seconds())
