"""Every parser counts before it works: what is too large is refused by name, what is left costs little."""

import unicodedata
from contextlib import suppress

import pytest
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from bench.parsers import CASES, Case, cpu_milliseconds, peak_megabytes
from web.api.json_body import MAX_MEMBERS, parse_object
from web.api.paging import decode_cursor
from web.api.parameter_fields import MAX_MARKS_IN_A_ROW, Text
from web.api.schemas import JobRequest, field_errors
from web.csv.cells import typed_cell
from web.csv.header import MAX_COLUMNS
from web.csv.rows import MAX_LINES_PER_ROW, MAX_ROW_CHARACTERS, parse_csv
from web.middleware import register_request_limits
from web.problems import problem, register_errors
from web.refusals import FieldError, InvalidCsv, InvalidRequest, MalformedBody

MUCH_MS = 6000  # 20 times what the dearest case took: 0.28 s
MUCH_MB = 8  # the largest input has 10, so nothing is copied whole


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parser}: {case.name}")
def test_S36_no_input_costs_much_time(case: Case) -> None:
    assert cpu_milliseconds(case, case.max_bytes, 1) < MUCH_MS


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name != "commas"],  # ten million cells are slow to trace
    ids=lambda case: f"{case.parser}: {case.name}",
)
def test_S36_no_input_costs_much_memory(case: Case) -> None:
    # A file that is uploaded is kept, once, and grows by doubling.
    allowed = 32 if case.parser == "multipart" else MUCH_MB
    assert peak_megabytes(case) < allowed


def refusal_of(data: bytes, max_rows: int = 100) -> str:
    with pytest.raises(InvalidCsv) as refused:
        list(parse_csv(data, max_rows=max_rows))
    assert len(refused.value.errors) <= 100
    return refused.value.detail


@pytest.mark.parametrize("header", [b"prompt," * 20_000, b"a," * 2_500_000, b"," * 64])
def test_S36_columns_are_counted_before_the_header_is_parsed(header: bytes) -> None:
    # What would be found later is not: the quote that never ends.
    detail = refusal_of(header + b'"\n' + b"x\n")
    assert detail == f"line 1: the header has more than {MAX_COLUMNS} columns"


def test_S36_a_row_is_bounded_before_it_is_read_to_its_end() -> None:
    limit = f"line 2: the row has more than {MAX_ROW_CHARACTERS} characters"
    assert refusal_of(b"prompt\n" + b"a" * 10_000_000) == limit
    assert refusal_of(b"prompt\n" + b"," * 10_000_000) == limit
    many_lines = refusal_of(b'prompt\n"' + b"a\n" * 100_000, max_rows=10_000)
    assert f"the row has more than {MAX_ROW_CHARACTERS} characters" in many_lines


@pytest.mark.parametrize("lines", [b"\n", b"\r", b" \r\n", b",\n"])
def test_S36_lines_are_bounded_empty_ones_too(lines: bytes) -> None:
    end = b"\r" if lines == b"\r" else b"\n"
    detail = refusal_of(b"prompt,seed" + end + lines * 1_000_000, max_rows=100)
    assert f"the file has more than {100 * MAX_LINES_PER_ROW} lines" in detail


def test_S36_rows_are_read_one_at_a_time() -> None:
    rows = parse_csv(b"prompt\nfirst\nsecond\n" + b'"never closed', max_rows=10)
    assert [next(rows).cells["prompt"], next(rows).cells["prompt"]] == ["first", "second"]
    with pytest.raises(InvalidCsv, match="line 4, prompt: a quote is opened here and never closed"):
        next(rows)


@pytest.mark.parametrize("column", ["seed", "guidance_scale", "guidance_cutoff", "strict"])
def test_S36_a_number_is_bounded_before_it_is_matched(column: str) -> None:
    with pytest.raises(ValueError, match="has more than 40 characters"):
        typed_cell(column, "1" * 100_000 + "x")


def test_S36_a_byte_that_is_no_utf8_is_found_in_its_line_across_pieces() -> None:
    for position in (65_534, 65_535, 65_536, 131_071):
        data = ("prompt\né\n".encode() + b"a\n" * 100_000)[:position]
        num_lines = data.count(b"\n") + 1
        assert refusal_of(data + b"\xc3(\n").startswith(f"line {num_lines}: the file is not UTF-8")
        whole = data + "é".encode() + b"\n"
        assert sum(1 for _ in parse_csv(whole, max_rows=100_000)) > 10


@given(st.binary(max_size=300) | st.text(alphabet='prompt,seed\n\r"éa1', max_size=300).map(str.encode))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_S36_any_bytes_are_rows_or_a_refusal(data: bytes) -> None:
    with suppress(InvalidCsv):
        for row in parse_csv(b"prompt,seed\n" + data, max_rows=20):
            assert row.line >= 2


def test_S36_members_of_json_are_counted_before_it_is_parsed() -> None:
    most = b'{"a":[' + b",".join([b"1"] * MAX_MEMBERS) + b"]}"
    assert len(parse_object(most)["a"]) == MAX_MEMBERS
    with pytest.raises(MalformedBody, match=f"more than {MAX_MEMBERS} members"):
        parse_object(b'{"a":[' + b"1," * MAX_MEMBERS + b"this is no JSON")
    assert parse_object(b'{"a":"' + b"," * 60_000 + b'"}')


def test_S36_marks_in_a_row_are_counted_before_they_are_sorted() -> None:
    most = "e" + "\u0301\u0316" * (MAX_MARKS_IN_A_ROW // 2)
    assert TypeAdapter(Text).validate_python(most * 60) == unicodedata.normalize("NFC", most * 60)
    with pytest.raises(ValidationError) as refused:
        JobRequest.model_validate({"prompt": most + "\u0301" + "\u0316" * 100_000})
    assert field_errors(refused.value)[0].detail == "has more than 30 combining marks in a row"


def test_S36_a_cursor_is_bounded_before_it_is_decoded() -> None:
    with pytest.raises(InvalidRequest, match="not a next_cursor"):
        decode_cursor("W1" * 500_000)


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    register_request_limits(app)
    register_errors(app)
    app.add_url_rule("/<path:rest>", view_func=lambda rest: rest)
    return app


@pytest.mark.parametrize(
    ("address", "headers", "status", "words"),
    [
        ("/" + "a" * 9000, {}, 414, "8192 bytes"),
        ("/a?b=" + "c" * 5000, {}, 422, "4096 bytes"),
        ("/a?" + "state=queued&" * 40, {}, 422, "32 parameters"),
        ("/a", {"Prefer": "wait=1," * 2000}, 431, "8192 bytes"),
        ("/a", {"Cookie": "a=" + "b" * 9000}, 431, "8192 bytes"),
        ("/a", {f"X-{number}": "a" * 5000 for number in range(8)}, 431, "32768 bytes"),
        ("/a", {f"X-{number}": "a" for number in range(200)}, 431, "100 headers"),
        ("/" + "a" * 2000 + "?" + "b&" * 30, {f"X-{number}": "a" * 300 for number in range(90)}, 200, ""),
    ],
)
def test_S36_the_head_of_a_request_is_bounded(
    app: Flask, address: str, headers: dict[str, str], status: int, words: str
) -> None:
    answer = app.test_client(use_cookies=False).get(address, headers=headers)
    assert answer.status_code == status
    assert words in answer.get_data(as_text=True)


def test_S36_an_error_is_bounded_whatever_was_found(app: Flask) -> None:
    found = [FieldError("f" * 100, "d" * 300, line) for line in range(10_000)]
    with app.test_request_context():
        answer = problem(422, "invalid_csv", "x" * 1_000_000, found)
    body = answer.get_json()
    assert (len(body["errors"]), body["num_errors"], len(body["detail"])) == (100, 10_000, 1000)
    assert len(answer.get_data()) < 1_000_000
