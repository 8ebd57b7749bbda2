"""A JSON body is read strictly, and no body, however made, costs more than its refusal."""

import time

import pytest

from web.api.json_body import MAX_DEPTH, parse_object
from web.refusals import InvalidRequest, MalformedBody


def test_an_object_is_read() -> None:
    assert parse_object(b'{"a": [1, 2.5, "\xc3\xa9", null, true], "b": {"c": "]}"}}') == {
        "a": [1, 2.5, "é", None, True],
        "b": {"c": "]}"},
    }


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "is empty"),
        (b'{"a": 1', "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "finite"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' appears more than once"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": ' + b"1" * 5000 + b"}", "more than 400 characters"),
        (b"[" * 50_000 + b"]" * 50_000, "16 levels"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "16 levels"),
        (b"[" * 50_000, "16 levels"),
        (b"\xef\xbb\xbf", "not JSON"),
        (b"{}\xef\xbb\xbf", "not JSON"),
        (b"\xef\xbb\xbf{\xff}", "not UTF-8: byte 4"),
    ],
)
def test_what_is_not_json_is_malformed(body: bytes, words: str) -> None:
    with pytest.raises(MalformedBody) as refused:
        parse_object(body)
    assert words in refused.value.detail


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"7", b"null"])
def test_only_an_object_is_a_request(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_object(body)


def test_a_lone_surrogate_in_a_key_is_refused_where_it_stands() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_object(b'{"a": {"b": [{"\\ud800": 1}]}}')
    assert refused.value.errors[0].field == "a/b/0"
    assert parse_object(b'{"a": "\\ud83d\\ude00"}') == {"a": "😀"}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("128.0", 128), ("1.28e2", 128), ("-3.0", -3), ("0.0", 0), ("9007199254740992.0", 2**53),
        ("128.5", 128.5), ("1e-400", 0.0), ("1e-99999999999999999999", 0.0),
        ("9007199254740993.0", 9007199254740992.0), ("1e16", 1e16),
    ],
)  # fmt: skip
def test_S6_a_number_that_is_whole_is_whole_however_it_is_written(written: str, read: float) -> None:
    """Above 2^53 a double stands for several whole numbers, and nobody knows which one was meant."""
    (found,) = parse_object(f'{{"a": {written}}}'.encode()).values()
    assert (type(found), found) == (type(read), read)


def test_depth_is_counted_outside_strings() -> None:
    brackets = b"[" * 100
    assert parse_object(b'{"a": "' + brackets + b'\\"' + brackets + b'"}')
    assert parse_object(b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH)


@pytest.mark.parametrize(
    "body", [b'"\\' * 32_768, b'\\"' * 32_768, b'"a' * 32_768, b'{"a":"' + b'\\"' * 32_000]
)
def test_no_body_makes_the_reader_slow(body: bytes) -> None:
    began = time.perf_counter()
    with pytest.raises((MalformedBody, InvalidRequest)):
        parse_object(body)
    assert time.perf_counter() - began < 1


def test_S13_a_byte_order_mark_before_the_object_is_overlooked() -> None:
    assert parse_object(b'\xef\xbb\xbf{"prompt": "\xc3\xa9"}') == {"prompt": "é"}


@pytest.mark.parametrize("name", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_S13_another_encoding_of_unicode_is_called_by_its_name(name: str) -> None:
    with pytest.raises(MalformedBody) as refused:
        parse_object('{"prompt": "a"}'.encode(name))
    assert name[:6].upper() in refused.value.detail
    assert "UTF-8" in refused.value.detail
