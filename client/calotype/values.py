"""Checks that values can be sent as JSON, text or headers; raises `UnsendableError` with the field.

Rejects what no request can contain, such as NaN or half of a surrogate pair. The server checks the limits of
each field.
"""

import json
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from .errors import UnsendableError


def json_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, with numbers of other libraries such as numpy converted to Python numbers."""
    sendable = {}
    for name, value in given.items():
        try:
            sendable[name] = _number(value)
            json.dumps(sendable[name], ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise _refusal(name, error) from error
    return sendable


def texts(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a form or query: texts or sequences of texts that UTF-8 can encode."""
    for name, value in given.items():
        for text in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(text, str | int | float):
                raise UnsendableError(name, f"is a {type(text).__name__}, not a text")
            as_utf8(name, str(text))
    return dict(given)


def as_utf8(field: str, text: str) -> bytes:
    """The UTF-8 bytes of a text."""
    try:
        return text.encode()
    except (UnicodeEncodeError, AttributeError) as error:
        raise _refusal(field, error) from error


def header(field: str, text: str) -> str:
    """The value of a header: printable ASCII without surrounding spaces (RFC 9110 section 5.5)."""
    if not (isinstance(text, str) and text.isascii() and text.isprintable() and text == text.strip()):
        raise UnsendableError(field, "must be printable ASCII without surrounding spaces")
    return text


def _number(value: Any) -> Any:
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _refusal(field: str, error: Exception) -> UnsendableError:
    if isinstance(error, UnicodeEncodeError):
        return UnsendableError(field, f"contains {error.object[error.start]!a}, which UTF-8 cannot encode")
    return UnsendableError(field, f"cannot be sent: {error}")
