"""A CSV is read whole or reported by line; what is written back is no formula."""

import csv
import gzip
import io
from typing import Any

import pytest

from web.csv_rows import COLUMNS, harmless, parse_csv, write_csv
from web.refusals import InvalidCsv


def rows(text: str | bytes, max_rows: int = 100) -> list[tuple[int, dict[str, Any]]]:
    data = text.encode() if isinstance(text, str) else text
    return [(row.line, row.cells) for row in parse_csv(data, max_rows=max_rows)]


def test_cells_are_typed_by_their_column_and_empty_ones_left_out() -> None:
    found = rows("prompt,seed,guidance_scale,width\na red heart,7,4.5,\n\n  blue  ,,, 64 \n")
    assert found == [
        (2, {"prompt": "a red heart", "seed": 7, "guidance_scale": 4.5}),
        (4, {"prompt": "  blue  ", "width": 64}),
    ]


def test_what_asks_for_less_work_is_typed_too() -> None:
    found = rows("prompt,guidance_cutoff,step_cache,preset\na,0.5,3,\nb,,,fast\n")
    assert found == [
        (2, {"prompt": "a", "guidance_cutoff": 0.5, "step_cache": 3}),
        (3, {"prompt": "b", "preset": "fast"}),
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_are_counted_where_a_row_begins(newline: str) -> None:
    text = newline.join(["prompt", '"two', 'lines"', "", "three"])
    assert [line for line, _ in rows(text)] == [2, 5]


def test_a_byte_order_mark_and_any_script_are_read() -> None:
    assert rows("\ufeffprompt\nein grüner Kreis 🟢\n") == [(2, {"prompt": "ein grüner Kreis 🟢"})]


def test_a_line_break_in_a_cell_is_one_character() -> None:
    assert rows('prompt\r\n"a\r\nb"\r\n') == [(2, {"prompt": "a\nb"})]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no row"),
        (b"\n\n", "no row"),
        (b"prompt\n", "no row"),
        (b"prompt,seed\n,\n", "no row"),
        (b"seed\n1\n", "required in the header"),
        (b"prompt,colour\na,b\n", "colour"),
        (b"prompt;seed\na;b\n", "prompt;seed"),
        (b"prompt,prompt\na,b\n", "twice"),
        (b"prompt\na\0b\n", "line 2: the file holds a NUL"),
        (b"prompt\nok\n\xff\xfe\n", "line 3: the file is not UTF-8"),
        ("prompt\nä\n".encode("utf-16"), "NUL"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG"),
        (gzip.compress(b"prompt\na\n"), "gzip"),
        (b"PK\x03\x04....", "ZIP"),
        (b'prompt\n"unfinished\n', "cannot be read as CSV"),
        (b'prompt\n"a"b\n', "cannot be read as CSV"),
        (b"prompt\n" + b"a" * 200_000 + b"\n", "line 2: the row has more than 131072 characters"),
        (b"prompt\n" + b"a\n" * 101, "more than 100 rows"),
    ],
)
def test_a_file_that_is_no_csv_of_prompts_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(InvalidCsv) as refused:
        rows(data)
    assert words in refused.value.detail


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("seed", "1.5"),
        ("seed", "٣"),
        ("seed", "1e3"),
        ("seed", "1" * 5000),
        ("width", "wide"),
        ("guidance_scale", "nan"),
        ("guidance_scale", "inf"),
        ("guidance_scale", "1e9999"),
        ("guidance_scale", "4;5"),
        ("guidance_cutoff", "half"),
        ("step_cache", "2.5"),
    ],
)
def test_a_cell_of_the_wrong_kind_is_reported_with_its_line(column: str, cell: str) -> None:
    (row,) = parse_csv(f"prompt,{column}\na,{cell}\n".encode(), max_rows=5)
    assert [(error.line, error.field) for error in row.errors] == [(2, column)]


def test_a_row_of_the_wrong_width_is_reported() -> None:
    found = parse_csv(b"prompt,seed\na,1,2\nb\nc,3\n", max_rows=5)
    assert [len(row.errors) for row in found] == [1, 1, 0]


def test_a_batch_has_no_lane_of_its_own() -> None:
    assert "lane" not in COLUMNS
    with pytest.raises(InvalidCsv):
        rows("prompt,lane\na,interactive\n")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff20"])
def test_no_cell_is_written_as_a_formula(start: str) -> None:
    assert harmless(start + "cmd|'/c calc'!A0") == "'" + start + "cmd|'/c calc'!A0"


def test_what_is_written_can_be_read_again() -> None:
    cells = (3, 'a "quoted", one', "two\nlines", None, -1)
    text = "".join(write_csv(("a", "b", "c", "d", "e"), [cells]))
    assert list(csv.reader(io.StringIO(text)))[1] == ["3", 'a "quoted", one', "two\nlines", "", "-1"]
