"""The request headers that this API reads: `Idempotency-Key`, and `Prefer` (RFC 7240).

An invalid `Idempotency-Key` is refused. An invalid preference is ignored, as the RFC requires.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from os import SEEK_END
from typing import BinaryIO

from flask import Flask, Response, request
from pydantic import BaseModel

from web.refusals import FieldError, InvalidRequest

IDEMPOTENCY_KEY = "Idempotency-Key"
MAX_KEY_CHARACTERS = 255
DIGESTED_BYTES = 65_536
DEFAULT_WAIT_SECONDS = 30.0
"""The wait if `wait` has no number: well below 60 s, after which most proxies give up."""

# Possessive quantifiers, and quotes that may stay open: no character is examined twice.
_PART = re.compile(r'(?:[^",]++|"(?:[^"\\]++|\\.?)*+"?)++', re.DOTALL)
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PREFERENCE = re.compile(rf'\s*({_TOKEN})\s*+(?:=\s*+({_TOKEN}|"(?:[^"\\]|\\.)*+")?\s*+)?(?:;.*)?', re.DOTALL)
_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def idempotency_key(scope: str = "") -> str | None:
    """The request's idempotency key, if any; `scope` keeps routes that share a table apart.

    Raises `InvalidRequest` for a key that is empty, too long or not printable ASCII.
    """
    key = request.headers.get(IDEMPOTENCY_KEY)
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS or not all(" " <= character <= "~" for character in key):
        detail = f"must have 1 to {MAX_KEY_CHARACTERS} printable ASCII characters"
        raise InvalidRequest.of([FieldError(IDEMPOTENCY_KEY, detail, parameter=True)])
    # A client's key never contains a newline, so a scoped key cannot equal another key.
    return f"{scope}\n{key}" if scope else key


def digest_of_meaning(body: BaseModel) -> str:
    """SHA-256 of the request in a body, independent of how its JSON is written.

    The order of keys and the notation of numbers and strings do not matter. A field that is left out, null or
    equal to its default in the schema counts the same. Defaults of a model are not applied: they may change.
    """
    asked = body.model_dump(mode="json", exclude_defaults=True)
    canonical = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return digest_of(type(body).__name__.encode(), canonical.encode())


def digest_of(*parts: bytes) -> str:
    """SHA-256 of the parts, each preceded by its length, so that no two lists of parts hash alike."""
    return digest_of_file(None, *parts)


def digest_of_file(file: BinaryIO | None, *parts: bytes) -> str:
    """The same with the bytes of a file as the first part, which are read in pieces."""
    digest = hashlib.sha256()
    if file is not None:
        digest.update(file.seek(0, SEEK_END).to_bytes(8, "big"))
        file.seek(0)
        while piece := file.read(DIGESTED_BYTES):
            digest.update(piece)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


@dataclass(frozen=True)
class Preferences:
    """The preferences of a client that this API supports."""

    wait_seconds: float | None = None
    """The requested number, or the default; the server may shorten it. None means do not wait."""
    respond_async: bool = False


def preferences(header: str | None) -> Preferences:
    """The preferences in all `Prefer` fields of a request, which WSGI joins with commas."""
    found: dict[str, str] = {}
    for part in _PART.findall(header or ""):
        if match := _PREFERENCE.fullmatch(part):
            # The first preference of a name counts (RFC 7240, section 2).
            found.setdefault(match[1].lower(), _unquoted(match[2] or ""))
    return Preferences(_seconds(found["wait"]) if "wait" in found else None, "respond-async" in found)


def said_seconds(seconds: float) -> str:
    """A number of seconds as `Preference-Applied` gives it, to the millisecond."""
    return str(round(seconds, 3)).removesuffix(".0")


def register_preferences(app: Flask) -> None:
    """Confirm `respond-async` in every `202`."""

    @app.after_request
    def acknowledge(response: Response) -> Response:
        if response.status_code == 202 and preferences(request.headers.get("Prefer")).respond_async:
            applied = response.headers.get("Preference-Applied")
            response.headers["Preference-Applied"] = (
                f"{applied}, respond-async" if applied else "respond-async"
            )
        return response


def _unquoted(word: str) -> str:
    return re.sub(r"\\(.)", r"\1", word[1:-1]) if word.startswith('"') else word


def _seconds(value: str) -> float | None:
    """The default where there is no value, or an empty one (RFC 7240, section 2)."""
    if not value:
        return DEFAULT_WAIT_SECONDS
    return float(value) if _SECONDS.fullmatch(value) else None
