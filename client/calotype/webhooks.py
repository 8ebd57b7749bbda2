"""Verifies webhooks (Standard Webhooks 1.0): HMAC-SHA256 over id, timestamp and body.

It needs only the standard library and no client; `GET /v1/webhook-secret` returns the secret.
"""

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigurationError, WebhookError

TOLERANCE_SECONDS = 300
_PREFIX = "whsec_"


@dataclass(frozen=True)
class WebhookEvent:
    """A verified message. Every attempt to deliver it has the same `id`."""

    id: str
    type: str
    timestamp: int
    """When this attempt was signed, in seconds since 1970-01-01."""
    data: Mapping[str, Any]
    """The job or the batch, without prompts."""
    raw: Mapping[str, Any]


def verify_webhook(
    body: bytes | str,
    headers: Mapping[str, str],
    secrets: str | Iterable[str],
    *,
    tolerance_seconds: float = TOLERANCE_SECONDS,
    now: float | None = None,
) -> WebhookEvent:
    """The event in `body`, the unchanged body of the request. Raises `WebhookError` if it may be forged.

    `secrets` is one `whsec_` secret, or several while one is being replaced. The message is genuine if one
    of its `v1` signatures matches one of them, and if its timestamp is within `tolerance_seconds` of `now`
    (by default, of this machine's clock). The `code` of the error is `missing_header`, `invalid_header`,
    `timestamp_too_old`, `timestamp_too_new`, `no_matching_signature` or `invalid_body`. Raises
    `ConfigurationError` for a secret that is not valid.
    """
    data = _bytes(body)
    given = {name.lower(): value for name, value in headers.items()}
    message_id, timestamp, signatures = (
        _header(given, name) for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
    )
    signed_at = _signed_at(timestamp, tolerance_seconds, time.time() if now is None else now)
    keys = [_key(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    content = b".".join([message_id.encode(), timestamp.encode(), data])
    if not _is_signed(content, signatures, keys):
        raise WebhookError("no_matching_signature", "webhook-signature: none of the signatures matches")
    return _event(message_id, signed_at, data)


def _bytes(body: bytes | str) -> bytes:
    try:
        return body.encode() if isinstance(body, str) else bytes(body)
    except UnicodeEncodeError as error:
        raise WebhookError("invalid_body", "the body contains text that UTF-8 cannot encode") from error


def _header(given: Mapping[str, str], name: str) -> str:
    value = given.get(name)
    if not value:
        raise WebhookError("missing_header", f"the header {name} is missing")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise WebhookError(
            "invalid_header", f"the header {name} contains text that UTF-8 cannot encode"
        ) from error
    return value


def _signed_at(timestamp: str, tolerance_seconds: float, now: float) -> int:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise WebhookError("invalid_header", "webhook-timestamp is not a number of seconds")
    signed_at = int(timestamp)
    if signed_at < now - tolerance_seconds:
        raise WebhookError("timestamp_too_old", "webhook-timestamp is too old")
    if signed_at > now + tolerance_seconds:
        raise WebhookError("timestamp_too_new", "webhook-timestamp is in the future")
    return signed_at


def _key(secret: str) -> bytes:
    encoded = secret.strip().removeprefix(_PREFIX)
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ConfigurationError("a webhook secret is 'whsec_' followed by base64")
    return key


def _is_signed(content: bytes, signatures: str, keys: Iterable[bytes]) -> bool:
    given = [part.partition(",")[2] for part in signatures.split(" ") if part.startswith("v1,")]
    is_signed = False
    for key in keys:
        expected = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest())
        for signature in given:
            # Every pair is compared, so that the time does not reveal which one matched.
            is_signed |= hmac.compare_digest(expected, signature.encode())
    return is_signed


def _event(message_id: str, signed_at: int, data: bytes) -> WebhookEvent:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or not isinstance(message.get("data"), dict):
        raise WebhookError("invalid_body", "the body is signed, but it is not a JSON object with `data`")
    return WebhookEvent(message_id, str(message.get("type", "")), signed_at, message["data"], message)
