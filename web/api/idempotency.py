"""The Idempotency-Key of a request, and the digest by which a repetition is known to be one."""

import hashlib
import json

from flask import request
from pydantic import BaseModel

from web.refusals import FieldError, InvalidRequest

HEADER = "Idempotency-Key"
MAX_CHARACTERS = 255


def idempotency_key(scope: str = "") -> str | None:
    """The request's key, or nothing; `scope` keeps routes that share a table apart.

    Raises `InvalidRequest` for a key that is empty, too long or not printable ASCII.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_CHARACTERS or not all(" " <= character <= "~" for character in key):
        detail = f"must have 1 to {MAX_CHARACTERS} printable ASCII characters"
        raise InvalidRequest.of([FieldError(HEADER, detail, parameter=True)])
    # A client's key never holds a newline, so a scoped key equals no other.
    return f"{scope}\n{key}" if scope else key


def digest_of_meaning(body: BaseModel) -> str:
    """SHA-256 over what a body asks for, however it is written.

    Keys stand in one order, numbers and texts in one form, and a field that is left out, null or given at the
    default of the schema is the same. What a model takes by itself is no such default: it may change.
    """
    asked = body.model_dump(mode="json", exclude_defaults=True)
    canonical = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return digest_of(type(body).__name__.encode(), canonical.encode())


def digest_of(*parts: bytes) -> str:
    """SHA-256 over the parts as they are, each with its length, so that they cannot run into one another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
