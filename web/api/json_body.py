"""Parsing a JSON body: its size, type, encoding and structure. It knows no field.

Python's parser accepts duplicate keys, NaN, any depth and any number of members. This one rejects them, and
counts before it parses. JSON has one kind of number (RFC 8259, section 6), so `128.0` becomes an `int`.
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
MAX_MEMBERS = 256  # in all objects and arrays together; a job has about 25 fields
MAX_NUMBER_CHARACTERS = 400  # the largest double has 309 digits
MAX_WHOLE = 2**53  # up to here a double represents every whole number exactly
# Possessive quantifiers, and strings that may be unfinished: no character is examined twice.
_STRING_OR_MARK = re.compile(r'"(?:[^"\\]++|\\.?)*+"?|[\[\]{},]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON_TYPE = re.compile(
    r"application/([a-z0-9!#$&^_.+-]+\+)?json"
)  # RFC 6839, section 3.1: the suffix +json means JSON
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_OTHER_ENCODINGS = (
    ("UTF-32", (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
    ("UTF-16", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)


def read_json_bytes(request: Request) -> bytes:
    """The raw body; raises a `Refusal` unless it is small enough and declared as JSON."""
    if not _JSON_TYPE.fullmatch(request.mimetype):
        raise UnsupportedMediaType(
            f"Content-Type {quoted(request.mimetype or 'missing')} is not accepted: send 'application/json'",
            headers={"Accept": "application/json"},
        )
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if charset not in _CHARSETS:
        raise UnsupportedMediaType(
            f"charset {quoted(charset)} is not accepted: send JSON as UTF-8 (RFC 8259, section 8.1)",
            headers={"Accept": "application/json"},
        )
    try:
        return request.get_data(cache=True)
    except RequestEntityTooLarge as error:
        raise BodyTooLarge(
            f"the body is larger than {request.max_content_length} bytes; "
            "upload larger images first, with POST /v1/files"
        ) from error
    except ClientDisconnected as error:
        raise MalformedBody("the body is shorter than its Content-Length") from error


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object; raises `MalformedBody`, or `InvalidRequest` if a key has a lone surrogate.

    Its strings may contain lone surrogates, which the schemas refuse by field.
    """
    if not data:
        raise MalformedBody("the body is empty; a JSON object is expected")
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
    # JSON begins with ASCII characters, which have zero bytes beside them in UTF-16 and UTF-32.
    if other is None and b"\0" in data[:2]:
        other = "UTF-16 or UTF-32"
    if other is not None:
        raise MalformedBody(f"the body is {other}: send JSON as UTF-8 (RFC 8259, section 8.1)")
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start + (len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0)
        raise MalformedBody(f"the body is not UTF-8: byte {at}") from error


def _check_shape(text: str) -> None:
    # Counted before parsing, since the parser itself would run out of stack.
    depth, num_members = 0, 1
    for match in _STRING_OR_MARK.finditer(text):
        if match[0] == ",":
            num_members += 1
            if num_members > MAX_MEMBERS:
                raise MalformedBody(f"the body has more than {MAX_MEMBERS} members")
        elif match[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise MalformedBody(f"the body is nested more than {MAX_DEPTH} levels deep")
        elif match[0] in "]}":
            depth -= 1


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedBody(f"{name} is not JSON: numbers must be finite")


def _finite(digits: str) -> float:
    """A number with a point or an exponent: an `int` if what is written is exactly a whole number."""
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
    except InvalidOperation:  # an exponent that Decimal cannot represent
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
        raise MalformedBody(f"the key {quoted(twice)} appears more than once")
    return value


def _refuse_surrogates(value: Any, pointer: str) -> None:
    """Refuse a lone surrogate in a key. In a string the schema reports it with all other errors."""
    if isinstance(value, dict):
        for key, item in value.items():
            if _SURROGATE.search(key):
                raise InvalidRequest.of(
                    [FieldError(pointer[:MAX_QUOTED_CHARACTERS], "has a key with a lone surrogate")]
                )
            _refuse_surrogates(item, f"{pointer}/{key}" if pointer else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_surrogates(item, f"{pointer}/{index}")
