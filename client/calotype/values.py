"""What a caller gives, as it can be sent: JSON, texts and headers, or `UnsendableError` naming the field.

Owns what no request can carry, as a number that JSON has not or half of a surrogate pair. The limits of each
field are the server's.
"""

import json
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from .errors import UnsendableError


def json_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with numbers of other libraries, such as numpy's, turned into Python's own."""
    sendable = {}
    for name, value in given.items():
        try:
            sendable[name] = _number(value)
            json.dumps(sendable[name], ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise _refusal(name, error) from error
    return sendable


def texts(given: Mapping[str, Any]) -> dict[str, Any]:
    """Texts, or sequences of texts, of a form or a query; raises for one that UTF-8 cannot hold."""
    for name, value in given.items():
        for text in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(text, str | int | float):
                raise UnsendableError(name, f"is a {type(text).__name__} and no text")
            as_utf8(name, str(text))
    return dict(given)


def as_utf8(field: str, text: str) -> bytes:
    """The bytes of a text."""
    try:
        return text.encode()
    except (UnicodeEncodeError, AttributeError) as error:
        raise _refusal(field, error) from error


def header(field: str, text: str) -> str:
    """A header's value: printable ASCII without spaces around it (RFC 9110 section 5.5)."""
    if not (isinstance(text, str) and text.isascii() and text.isprintable() and text == text.strip()):
        raise UnsendableError(field, "must be printable ASCII, without spaces around it")
    return text


def _number(value: Any) -> Any:
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _refusal(field: str, error: Exception) -> UnsendableError:
    if isinstance(error, UnicodeEncodeError):
        return UnsendableError(field, f"holds {error.object[error.start]!a}, which UTF-8 cannot hold")
    return UnsendableError(field, f"cannot be sent: {error}")
