"""Cursors, preferences and idempotency keys mean what they say, and nothing when they say nothing."""

from datetime import UTC, datetime

import pytest
from flask import Flask

from web.cursor import decode_cursor, encode_cursor
from web.idempotency import digest_of, idempotency_key
from web.preference import preferred_wait
from web.refusals import InvalidRequest

AN_ID = "job_" + "0" * 26


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("wait=10", 10),
        ("respond-async, wait=5", 5),
        ('Wait="7"', 7),
        ("wait = 3; foo=bar", 3),
        ("wait", None),
        ("wait=-1", None),
        ("wait=soon", None),
        ("respond-async", None),
    ],
)
def test_a_preference_that_cannot_be_read_is_none(header: str | None, seconds: int | None) -> None:
    assert preferred_wait(header) == seconds


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
