"""The `Prefer` header (RFC 7240): how long a client wants to wait for its job, and whether it need not.

What cannot be read is ignored, as the RFC has it: a preference is never a reason to refuse a request.
"""

import re
from dataclasses import dataclass

from flask import Flask, Response, request

DEFAULT_WAIT_SECONDS = 30.0
"""For a `wait` without a number. Most proxies give up after 60 s, so it is well below."""

# Possessive, and content with a quote that is never closed: no character is looked at twice.
_PART = re.compile(r'(?:[^",]++|"(?:[^"\\]++|\\.?)*+"?)++', re.DOTALL)
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PREFERENCE = re.compile(rf'\s*({_TOKEN})\s*+(?:=\s*+({_TOKEN}|"(?:[^"\\]|\\.)*+")?\s*+)?(?:;.*)?', re.DOTALL)
_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?")


@dataclass(frozen=True)
class Preferences:
    """What a client prefers, of what this API can do for it."""

    wait_seconds: float | None = None
    """As it was asked for, or the default; the server may cut it. None: not to wait."""
    respond_async: bool = False


def preferences(header: str | None) -> Preferences:
    """The preferences in all `Prefer` fields of a request, which WSGI joins with commas."""
    found: dict[str, str] = {}
    for part in _PART.findall(header or ""):
        if match := _PREFERENCE.fullmatch(part):
            # The first of a name counts (RFC 7240, section 2).
            found.setdefault(match[1].lower(), _unquoted(match[2] or ""))
    return Preferences(_seconds(found["wait"]) if "wait" in found else None, "respond-async" in found)


def said_seconds(seconds: float) -> str:
    """A number of seconds as `Preference-Applied` says it, to the millisecond."""
    return str(round(seconds, 3)).removesuffix(".0")


def register_preferences(app: Flask) -> None:
    """Say of every `202` that it came without waiting, to whoever prefers that."""

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
    """No value, or an empty one, is the bare preference (RFC 7240, section 2)."""
    if not value:
        return DEFAULT_WAIT_SECONDS
    return float(value) if _SECONDS.fullmatch(value) else None
