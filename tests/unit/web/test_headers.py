"""Cursors, preferences and idempotency keys mean what they say, and nothing when they say nothing."""

import time
from datetime import UTC, datetime

import pytest
from flask import Flask

from web.api.paging import decode_cursor, encode_cursor
from web.api.request_headers import digest_of, idempotency_key, preferences, said_seconds
from web.refusals import InvalidRequest

AN_ID = "job_" + "0" * 26


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("wait=10", 10),
        ("wait=0", 0),
        ("wait=007", 7),
        ("wait=5.5", 5.5),
        ("wait=9999", 9999),
        ("wait", 30),
        ("wait=", 30),
        ('wait=""', 30),
        ("Wait ; foo=bar", 30),
        ("respond-async, wait=5", 5),
        ("wait=5,respond-async", 5),
        ('Wait="7"', 7),
        ('WAIT="\\7"', 7),
        ("wait = 3; foo=bar", 3),
        ('wait=3; foo="a, wait=4; b"', 3),
        ('foo="a, wait=4", wait=3', 3),
        (", ,wait=2,,", 2),
        ("wait=1, wait=2", 1),
        ("return=minimal, handling=lenient, wait=6", 6),
        ("wait=-1", None),
        ("wait=+1", None),
        ("wait=soon", None),
        ("wait=1e3", None),
        ("wait=inf", None),
        ("wait=nan", None),
        ("wait=5 s", None),
        ("wait=5=6", None),
        ("waiting=5", None),
        ('foo="wait=5', None),
        ("respond-async", None),
        ("\u00e9=5", None),
    ],
)
def test_S7_a_preference_is_read_in_every_form_and_one_that_cannot_be_read_is_none(
    header: str | None, seconds: float | None
) -> None:
    assert preferences(header).wait_seconds == seconds
    assert preferences(header).respond_async == ("respond-async" in (header or ""))


@pytest.mark.parametrize("part", ['"', '"\\', '\\"', ",", "a=", 'a="b"', "wait,", ";", " ", '"",'])
def test_S7_no_header_makes_its_reader_slow(part: str) -> None:
    began = time.perf_counter()
    preferences(part * (65_536 // len(part)))
    assert time.perf_counter() - began < 1


def test_S7_what_was_applied_is_said_as_it_would_be_asked_for() -> None:
    assert [said_seconds(value) for value in (60.0, 5.5, 0.0, 7, 1 / 3)] == ["60", "5.5", "0", "7", "0.333"]


def test_a_cursor_comes_back_as_it_was() -> None:
    now = datetime.now(UTC)
    assert decode_cursor(encode_cursor(now, AN_ID)) == (now, AN_ID)
    assert decode_cursor(None) is None


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "é", "!!!!", "e30", "W10", "WzEsMl0", "\0", "WyIyMDI2LTAxLTAxVDAwOjAwOjAwIiwiam9iXyJd"],
)
def test_a_cursor_that_is_not_ours_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_cursor(cursor)
    assert refused.value.errors[0].field == "cursor"


def test_parts_of_a_digest_do_not_run_into_one_another() -> None:
    assert digest_of(b"ab", b"c") != digest_of(b"a", b"bc") != digest_of(b"abc")


@pytest.mark.parametrize("key", ["", "a" * 256, "caf\u00e9", "a\tb"])
def test_an_idempotency_key_is_short_and_printable(key: str) -> None:
    with (
        Flask("test").test_request_context(headers={"Idempotency-Key": key}),
        pytest.raises(InvalidRequest) as refused,
    ):
        idempotency_key()
    assert "255" in refused.value.detail


def test_a_scope_keeps_routes_apart() -> None:
    with Flask("test").test_request_context(headers={"Idempotency-Key": "k"}):
        assert idempotency_key() == "k"
        assert idempotency_key("retry job_a") not in (None, "k", idempotency_key("retry job_b"))
    with Flask("test").test_request_context():
        assert idempotency_key() is None
