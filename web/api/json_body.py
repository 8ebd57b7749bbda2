"""Reading a JSON body: size, type, encoding and shape, before anyone looks at its meaning.

Python's parser accepts duplicate keys, NaN, any depth and any number of members; this one does not, and
counts before it parses. JSON has one kind of number (RFC 8259, section 6): `128.0` is read as the whole
number that it is. It knows no field.
"""

import codecs
import json
import re
from collections import Counter
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from flask import Request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from web.refusals import (
    MAX_QUOTED_CHARACTERS,
    BodyTooLarge,
    FieldError,
    InvalidRequest,
    MalformedBody,
    UnsupportedMediaType,
    quoted,
)

MAX_DEPTH = 16
MAX_MEMBERS = 256  # of all objects and arrays together; a job has 20 fields
MAX_NUMBER_CHARACTERS = 400  # the largest of doubles has 309 digits
MAX_WHOLE = 2**53  # up to here every whole number is a double of its own
# Possessive, and content with an unfinished string: it never looks at a character twice.
_STRING_OR_MARK = re.compile(r'"(?:[^"\\]++|\\.?)*+"?|[\[\]{},]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON_TYPE = re.compile(
    r"application/([a-z0-9!#$&^_.+-]+\+)?json"
)  # RFC 6839, section 3.1: what ends in +json is JSON
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_OTHER_ENCODINGS = (
    ("UTF-32", (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
    ("UTF-16", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)


def read_json_bytes(request: Request) -> bytes:
    """The raw body, when it is small enough and says that it is JSON."""
    if not _JSON_TYPE.fullmatch(request.mimetype):
        raise UnsupportedMediaType(
            f"Content-Type is {quoted(request.mimetype or 'missing')}: this route takes 'application/json'",
            headers={"Accept": "application/json"},
        )
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if charset not in _CHARSETS:
        raise UnsupportedMediaType(
            f"charset is {quoted(charset)}: JSON is sent as UTF-8 (RFC 8259, section 8.1)",
            headers={"Accept": "application/json"},
        )
    try:
        return request.get_data(cache=True)
    except RequestEntityTooLarge as error:
        raise BodyTooLarge(
            f"the body is larger than {request.max_content_length} bytes; "
            "a larger image is uploaded first, with POST /v1/files"
        ) from error
    except ClientDisconnected as error:
        raise MalformedBody("the body is shorter than its Content-Length") from error


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object whose every key can be named; raises `MalformedBody` or `InvalidRequest`.

    Its strings may hold lone surrogates, which the schemas refuse by field.
    """
    if not data:
        raise MalformedBody("the body is empty, which is not JSON: an object is expected")
    text = _decoded(data)
    _check_shape(text)
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
            object_pairs_hook=_without_duplicates,
        )
    except json.JSONDecodeError as error:
        raise MalformedBody(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    if not isinstance(value, dict):
        raise InvalidRequest.of([FieldError("", "a JSON object is expected")])
    _refuse_surrogates(value, "")
    return value


def _decoded(data: bytes) -> str:
    """UTF-8, with or without a byte-order mark."""
    other = next((name for name, marks in _OTHER_ENCODINGS if data.startswith(marks)), None)
    # In UTF-16 and UTF-32 each of the first characters of JSON, which are ASCII, has zero bytes beside it.
    if other is None and b"\0" in data[:2]:
        other = "UTF-16 or UTF-32"
    if other is not None:
        raise MalformedBody(f"the body is {other}: JSON is sent as UTF-8 (RFC 8259, section 8.1)")
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start + (len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0)
        raise MalformedBody(f"the body is not UTF-8: byte {at}") from error


def _check_shape(text: str) -> None:
    # By counting, since the parser itself would run out of stack.
    depth, num_members = 0, 1
    for match in _STRING_OR_MARK.finditer(text):
        if match[0] == ",":
            num_members += 1
            if num_members > MAX_MEMBERS:
                raise MalformedBody(f"the body has more than {MAX_MEMBERS} members")
        elif match[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise MalformedBody(f"the body is nested deeper than {MAX_DEPTH} levels")
        elif match[0] in "]}":
            depth -= 1


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedBody(f"{name} is not JSON: numbers must be finite")


def _finite(digits: str) -> float:
    """A number written with a point or an exponent: an `int` where it is whole, exactly as written."""
    _check_length(digits)
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise MalformedBody("a number is too large: numbers must be finite")
    if value.is_integer() and abs(value) <= MAX_WHOLE and _is_exactly(int(value), digits):
        return int(value)
    return value


def _is_exactly(value: int, digits: str) -> bool:
    try:
        return Decimal(digits) == value
    except InvalidOperation:  # an exponent beyond all bounds
        return False


def _integer(digits: str) -> int:
    _check_length(digits)
    return int(digits)


def _check_length(digits: str) -> None:
    if len(digits) > MAX_NUMBER_CHARACTERS:
        raise MalformedBody(f"a number has more than {MAX_NUMBER_CHARACTERS} characters")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise MalformedBody(f"the key {quoted(twice)} is given twice")
    return value


def _refuse_surrogates(value: Any, pointer: str) -> None:
    """Refuse a lone surrogate in a key. In the text of a field the schema names it with all other faults."""
    if isinstance(value, dict):
        for key, item in value.items():
            if _SURROGATE.search(key):
                raise InvalidRequest.of(
                    [FieldError(pointer[:MAX_QUOTED_CHARACTERS], "holds a key with a lone surrogate")]
                )
            _refuse_surrogates(item, f"{pointer}/{key}" if pointer else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_surrogates(item, f"{pointer}/{index}")
