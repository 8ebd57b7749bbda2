"""A CSV is read whole or reported by line; what is written back is no formula."""

import csv
import gzip
import io
import re
from typing import Any

import pytest

from web.api.resources import JobResource
from web.csv.cells import harmless, typed_cell
from web.csv.header import COLUMNS, REPORT_COLUMNS, known_delimiter
from web.csv.reports import write_csv
from web.csv.rows import parse_csv
from web.csv.text import known_encoding
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
        (b"prompt,prompt\na,b\n", "more than once"),
        (b"prompt\na\0b\n", "line 2: the file contains a NUL"),
        (b"prompt\nok\n\x81\n", "line 3: the file is not UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG"),
        (gzip.compress(b"prompt\na\n"), "gzip"),
        (b"PK\x03\x04....", "ZIP"),
        (b"{\\rtf1\\ansi prompt", "RTF"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b'prompt\n"unfinished\n', "line 2, prompt: a quote is opened here and never closed"),
        (b'prompt\n"a"b\n', "is not valid CSV"),
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


def test_a_row_of_more_cells_than_the_header_is_reported() -> None:
    found = parse_csv(b"prompt,seed\na,1,2\nb\nc,3,\n", max_rows=5)
    assert [len(row.errors) for row in found] == [1, 0, 0]


def test_a_batch_has_no_lane_of_its_own() -> None:
    assert "lane" not in COLUMNS
    with pytest.raises(InvalidCsv):
        rows("prompt,lane\na,interactive\n")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff20"])
def test_no_cell_is_written_as_a_formula(start: str) -> None:
    assert harmless(start + "cmd|'/c calc'!A0") == "'" + start + "cmd|'/c calc'!A0"


@pytest.mark.parametrize(
    "text",
    [
        "007",
        "3/4",
        "12:30",
        "1e5",
        "$4",
        "50%",
        "1,5",
        "(2)",
        "March 1",
        "1-Jan-26",
        "9:15 pm",
        "TRUE",
        "'007",
    ],
)
def test_S22_a_prompt_that_a_spreadsheet_would_retype_comes_back_as_it_was(text: str) -> None:
    written = "".join(write_csv(("prompt",), [(text,)]))
    assert list(csv.reader(io.StringIO(written)))[1] == ["'" + text]
    assert [cells["prompt"] for _, cells in rows(written)] == [text]


@pytest.mark.parametrize(
    "text", ["a red heart", "3 red hearts", "a 2x4 grid", "May", "'quoted'", "true love"]
)
def test_S22_a_prompt_that_no_spreadsheet_retypes_has_no_mark(text: str) -> None:
    assert harmless(text) == text


def test_what_is_written_can_be_read_again() -> None:
    cells = (3, 'a "quoted", one', "two\nlines", None, -1)
    text = "".join(write_csv(("a", "b", "c", "d", "e"), [cells]))
    assert list(csv.reader(io.StringIO(text)))[1] == ["3", 'a "quoted", one', "two\nlines", "", "-1"]


@pytest.mark.parametrize(
    ("mark", "words"), [(",", "commas"), (";", "semicolons"), ("\t", "tabs"), ("|", "pipes")]
)
def test_S15_the_delimiter_is_the_one_that_finds_our_titles(mark: str, words: str) -> None:
    file = parse_csv(f"prompt{mark}seed\na{mark}7\n".encode(), max_rows=5)
    assert (file.read_as, [row.cells for row in file]) == (f"{words}, UTF-8", [{"prompt": "a", "seed": 7}])


def test_S15_a_file_of_one_column_has_no_delimiter() -> None:
    file = parse_csv(b'prompt\na red, large heart; on | white\n"quoted, too"\n', max_rows=5)
    found = [row.cells["prompt"] for row in file]
    assert found == ["a red, large heart; on | white", "quoted, too"]
    assert file.read_as == "one column, UTF-8"


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;", "\ufeffsep=;", "sep=;;;"])
def test_S15_a_first_line_names_the_delimiter_and_counts_as_a_line(first: str) -> None:
    assert rows(f"{first}\r\nprompt;seed\r\na,b;7\r\n") == [(3, {"prompt": "a,b", "seed": 7})]


def test_S15_a_first_line_that_another_program_kept_is_overruled_by_the_titles() -> None:
    assert rows('sep=;\nprompt,seed\n"a;b",7\n') == [(3, {"prompt": "a;b", "seed": 7})]


def test_S15_what_is_given_goes_before_what_is_recognised() -> None:
    file = parse_csv(b"sep=,\nprompt|seed\na;b|7\n", max_rows=5, delimiter="|", encoding="cp1251")
    assert (file.read_as, next(file).cells) == ("pipes, Windows-1251", {"prompt": "a;b", "seed": 7})


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (";", ";"),
        ("semicolon", ";"),
        ("Tab", "\t"),
        ("\t", "\t"),
        ("\\t", "\t"),
        ("pipe", "|"),
        ("comma", ","),
    ],
)
def test_S15_a_delimiter_is_named_by_word_or_as_itself(given: str, found: str) -> None:
    assert known_delimiter(given) == found
    with pytest.raises(ValueError, match="comma, semicolon, tab, pipe"):
        known_delimiter("x")


@pytest.mark.parametrize("name", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("given", [None, "utf-16"])
def test_S14_utf_16_is_read_with_and_without_its_mark(name: str, given: str | None) -> None:
    data = "prompt\tseed\r\nein grüner Kreis 🟢\t7\r\n".encode(name)
    (row,) = parse_csv(data, max_rows=5, encoding=given)
    assert row.cells == {"prompt": "ein grüner Kreis 🟢", "seed": 7}


def test_S14_utf_16_that_ends_in_half_a_character_is_named_by_its_line() -> None:
    with pytest.raises(InvalidCsv, match="line 3: the file is not UTF-16 LE"):
        rows("prompt\nä\nb".encode("utf-16") + b"\n")


def test_S16_windows_1252_is_read_when_nothing_else_fits_and_shows_what_was_read() -> None:
    file = parse_csv("prompt,seed\nok,1\nà côté de… €,2\n".encode("cp1252"), max_rows=5)
    assert [row.cells["prompt"] for row in file] == ["ok", "à côté de… €"]
    (warning,) = file.warnings
    assert (warning["code"], warning["field"]) == ("encoding_assumed", "encoding")
    assert "read as Windows-1252: line 3 has 'à côté de… €,2'" in warning["detail"]


@pytest.mark.parametrize(
    ("encoding", "given", "text"),
    [
        ("mac-roman", "macintosh", "à côté"),
        ("cp932", "Shift_JIS", "白い背景に赤いハート"),
        ("gb18030", "GBK", "白色背景上的红心"),
        ("cp1251", "windows-1251", "красное сердце"),
        ("koi8-r", "KOI8-R", "красное сердце"),
        ("cp949", "euc-kr", "흰 배경에 빨간 하트"),
        ("cp1250", "windows-1250", "żółty księżyc"),
        ("cp850", "IBM850", "à côté"),
        ("iso8859-15", "latin9", "20 €"),
    ],
)
def test_S16_an_encoding_that_nothing_tells_is_given(encoding: str, given: str, text: str) -> None:
    file = parse_csv(f"prompt;seed\n{text};7\n".encode(encoding), max_rows=5, encoding=known_encoding(given))
    assert ([row.cells["prompt"] for row in file], file.warnings) == ([text], [])


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("cp1251", "красное сердце"), ("gb18030", "白色背景上的红心"), ("cp949", "흰 배경에 빨간 하트")],
)
def test_S16_what_would_be_drawn_as_nonsense_is_refused_with_the_way_out(encoding: str, text: str) -> None:
    with pytest.raises(InvalidCsv, match=r"line 3: the file is not UTF-8.*windows-1251"):
        rows(f"prompt,seed\nok,1\n{text},7\n".encode(encoding))


@pytest.mark.parametrize(
    ("encoding", "text", "line"),
    [
        ("cp1251", "кот\nпёс", 2),  # noqa: RUF001
        ("cp1253", "γάτα", 2),
        ("cp932", "猫\n犬", 3),
        ("cp932", "あ", 2),
        ("gb18030", "红心", 2),
        ("cp1251", "a red heart\ncafe no 5\nкот", 4),  # noqa: RUF001
        ("cp1251", "a red heart on a white background кот", 2),
    ],
)
def test_S16_a_short_line_in_another_code_page_is_refused_too(encoding: str, text: str, line: int) -> None:
    with pytest.raises(InvalidCsv, match=rf"line {line}: the file is not UTF-8.*'encoding'"):
        rows(f"prompt\n{text}\n".encode(encoding))


def test_S16_a_line_in_another_code_page_after_western_ones_is_named() -> None:
    with pytest.raises(InvalidCsv, match=r"line 3: the file is not UTF-8.*'encoding'"):
        rows("prompt\nein grüner Kreis\n".encode("cp1252") + "кот\n".encode("cp1251"))


@pytest.mark.parametrize("western", ["grün", "“CAFÉ” on a sign", "« café\u00a0»"])
@pytest.mark.parametrize(
    "other",
    ["café über", "żółty", "šest", "a cat’s eye", "5 € coin", "кот, a cat", "a 猫 sign"],  # noqa: RUF001
)
@pytest.mark.parametrize("end", ["\n", ", "])
def test_S16_utf_8_beside_other_bytes_is_refused_in_either_order(western: str, other: str, end: str) -> None:
    first, second = western.encode("cp1252"), other.encode()
    if end == "\n" or other not in ("šest", "a 猫 sign"):
        with pytest.raises(InvalidCsv, match=r"line [23]: the file is not UTF-8.*'encoding'"):
            rows(b"prompt\n" + first + end.encode() + second + b"\n")
    with pytest.raises(InvalidCsv, match=r"line [23]: the file is not UTF-8.*'encoding'"):
        rows(b"prompt\n" + second + end.encode() + first + b"\n")


@pytest.mark.parametrize(
    "text",
    [
        "ein Schild „CAFÉ“ über Ö und Ä",
        "« café\u00a0» à côté",
        "¿Dónde está el niño?",
        "rødgrød på Ærø, smörgås",
        "“VOILÀ…” l’été",  # noqa: RUF001
        "20 € – größer als 5°",  # noqa: RUF001
    ],
)
@pytest.mark.parametrize(("encoding", "end"), [("cp1252", "\r\n"), ("mac-roman", "\r")])
def test_S16_western_text_with_its_usual_marks_is_read(text: str, encoding: str, end: str) -> None:
    found = rows(f"prompt{end}{text}{end}l’école rouge{end}".encode(encoding))  # noqa: RUF001
    assert found == [(2, {"prompt": text}), (3, {"prompt": "l’école rouge"})]  # noqa: RUF001


def test_S16_utf_8_with_a_broken_byte_is_no_windows_1252() -> None:
    with pytest.raises(InvalidCsv, match="line 3: the file is not UTF-8 from here on"):
        rows("prompt\ngrün\nblau und gr".encode() + b"\xfcn\n")


@pytest.mark.parametrize("name", ["utf-7", "rot13", "zlib", "idna", "no-such", "", "x" * 1000, "a\0b"])
def test_S16_what_is_no_encoding_of_a_table_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a known encoding"):
        known_encoding(name)


def test_S16_an_encoding_that_contradicts_the_bytes_is_refused() -> None:
    with pytest.raises(InvalidCsv, match="byte-order mark of UTF-8"):
        list(parse_csv("\ufeffprompt\na\n".encode(), max_rows=5, encoding="cp1252"))
    with pytest.raises(InvalidCsv, match="line 2: the file is not UTF-8, although 'encoding' names utf-8"):
        list(parse_csv(b"prompt\n\xff\n", max_rows=5, encoding="utf-8"))


@pytest.mark.parametrize(
    "header",
    [
        "Prompt,Num Inference Steps",
        " prompt ,num-inference-steps,,",
        "PROMPT,NUM_INFERENCE_STEPS,",
        "\u00a0prompt\u00a0,numInferenceSteps, ,\t",
        "\ufeff\u200bprompt,num inference steps",
    ],
)
def test_S17_a_title_is_ours_however_it_is_spelled_and_empty_ones_are_passed_over(header: str) -> None:
    assert rows(f"{header}\na,2,,\nb\n") == [
        (2, {"prompt": "a", "num_inference_steps": 2}),
        (3, {"prompt": "b"}),
    ]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (
            "prompt,Steps",
            "line 1, Steps: column B is not a known column (did you mean 'num_inference_steps'?)",
        ),
        ("prompt,widht", "line 1, widht: column B is not a known column (did you mean 'width'?)"),
        ("seed,prompt,colour", "line 1, colour: column C is not a known column; the columns are: prompt, "),
        ("prompt,seed,Prompt", "line 1, prompt: this column appears more than once: A and C"),
        ("Text;Breite", "line 1, prompt: the first line must name the columns"),
        ("a red heart", "has no known name: 'a red heart'"),
        ("prompt,lane", "line 1, lane: column B is not a known column"),
    ],
)
def test_S17_a_title_that_is_not_ours_is_named_with_its_place_and_the_nearest(
    header: str, words: str
) -> None:
    with pytest.raises(InvalidCsv) as refused:
        rows(f"{header}\na,b,c\n")
    assert words in refused.value.detail


@pytest.mark.parametrize(
    ("title", "near"),
    [
        ("images", " (did you mean 'num_images'?)"),
        *((title, "") for title in ("state", "error", "links", "worker", "tier")),
        ("progress", ""),
        ("ID", ""),
    ],
)
def test_S17_a_title_of_reports_is_unknown_in_a_file_that_names_no_job(title: str, near: str) -> None:
    with pytest.raises(InvalidCsv) as refused:
        rows(f"prompt,{title}\na red heart,4\n")
    assert f"line 1, {title}: column B is not a known column{near}" in refused.value.detail


@pytest.mark.parametrize("ids", [("", ""), ("7", "8")])
def test_S17_a_column_of_ids_that_are_no_jobs_makes_no_report(ids: tuple[str, str]) -> None:
    with pytest.raises(InvalidCsv) as refused:
        rows(f"id,prompt,images\n{ids[0]},a red heart,4\n{ids[1]},a star,4\n")
    assert [error.field for error in refused.value.errors] == ["id", "images"]


@pytest.mark.parametrize("title", ["job_id", "id"])
def test_S17_every_column_of_a_job_and_of_a_report_is_known_beside_the_id_of_a_job(title: str) -> None:
    others = {*JobResource.model_fields, *REPORT_COLUMNS} - {*COLUMNS, "id", "job_id"}
    header = ",".join(["prompt", title, *sorted(others)])
    file = list(parse_csv(f"{header}\na star,\na red heart,job_1,x\n".encode(), max_rows=5))
    assert [(row.cells, row.job_id) for row in file] == [
        ({"prompt": "a star"}, None),
        ({"prompt": "a red heart"}, "job_1"),
    ]


def test_S17_a_cell_under_no_title_is_named_by_its_column() -> None:
    (first, second) = parse_csv(b"prompt,,seed\na,,1\nb,x,2\n", max_rows=5)
    assert (first.errors, [(error.line, error.field) for error in second.errors]) == ((), [(3, "column B")])


def test_S17_thousands_of_empty_columns_are_no_columns() -> None:
    empty = "," * 16_000
    assert rows(f"prompt,seed{empty}\na,1{empty}\n") == [(2, {"prompt": "a", "seed": 1})]


@pytest.mark.parametrize(
    "rest", ["c,3\n" * 5000, 'c,"3"\n' * 5000, '"c",3\n' * 5000, '"c, d",3\n' * 5000, ""]
)
@pytest.mark.parametrize("opened", ['"b,2\n', 'b,"2\n'])
def test_S18_a_quote_that_is_never_closed_is_named_where_it_is_opened(rest: str, opened: str) -> None:
    with pytest.raises(InvalidCsv) as refused:
        rows(f"prompt,seed\na,1\n{opened}{rest}", max_rows=10_000)
    (error,) = refused.value.errors
    assert (error.line, error.field) == (3, "seed" if opened[0] == "b" else "prompt")
    assert "a quote is opened here" in error.detail or "the quoted cell that begins here" in error.detail


def test_S18_lines_of_a_cell_before_the_mistake_are_counted() -> None:
    with pytest.raises(InvalidCsv, match="line 4, negative_prompt: a quote is opened here and never closed"):
        rows('prompt,negative_prompt\n"two\nlines\nthree","never\nclosed\n')


@pytest.mark.parametrize(
    ("column", "cell", "value"),
    [
        ("width", "2.0", 2), ("width", "128.00", 128), ("width", "2,0", 2), ("seed", "\u00a07\u00a0", 7),
        ("seed", '="1234567890123456789"', 1234567890123456789), ("seed", "\u200b7\ufeff", 7),
        ("seed", "4294967295.0", 4294967295), ("guidance_scale", "7,5", 7.5), ("guidance_scale", "7.2", 7.2),
        ("guidance_scale", "1e-05", 1e-05), ("guidance_cutoff", "0,125", 0.125),
        ("strict", "WAHR", True), ("strict", "Falsch", False), ("strict", "1", True),
        ("strict", "0.0", False), ("strict", "yes", True),
        ("guidance_cutoff", "50%", 0.5), ("guidance_cutoff", "12,5 %", 0.125),
        ("output_format", "PNG", "png"), ("model", " tiny ", "tiny"),
    ],
)  # fmt: skip
def test_S19_a_cell_is_read_as_spreadsheets_write_it(column: str, cell: str, value: object) -> None:
    found = typed_cell(column, cell, ";")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("column", "cell", "delimiter", "words"),
    [
        ("seed", "1,000", ",", "thousands separator (',')"),
        ("seed", "1.000", ";", "thousands separator ('.')"),
        ("seed", "1 000 000", ",", "thousands separator (' ')"),
        ("seed", "1'000", ",", "thousands separator"),
        ("seed", "1\u202f000", ",", "thousands separator"),
        ("deadline_seconds", "3.600", ";", "thousands separator ('.')"),
        ("deadline_seconds", "3,600", ",", "thousands separator (',')"),
        ("seed", "1.23457E+15", ",", "dropped digits"),
        ("seed", "1,23457E+15", ";", "dropped digits"),
        ("width", "#REF!", ",", "the spreadsheet error #REF!"),
        ("prompt", "#N/A", ",", "the spreadsheet error #N/A"),
        ("prompt", "#NAME?", ",", "the spreadsheet error #NAME?"),
        ("width", "####", ",", "widen its column"),
        ("prompt", "Err:502", ",", "the spreadsheet error Err:502"),
        ("strict", "perhaps", ",", "should be true or false"),
        ("width", "2.5", ",", "should be a whole number"),
    ],
)
def test_S19_a_cell_that_lost_its_meaning_says_how(
    column: str, cell: str, delimiter: str, words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        typed_cell(column, cell, delimiter)


@pytest.mark.parametrize("missing", ["NA", "NULL", "\\N", " NA "])
def test_S19_what_r_and_sql_write_for_a_missing_value_is_empty_but_in_prompts(missing: str) -> None:
    others = [column for column in COLUMNS if column not in ("prompt", "negative_prompt")]
    header = ",".join(["prompt", "negative_prompt", *others])
    cells = ",".join([missing] * (2 + len(others)))
    assert rows(f"{header}\n{cells}\n") == [(2, {"prompt": missing, "negative_prompt": missing})]


@pytest.mark.parametrize("missing", ["NA", "NULL", "\\N"])
def test_S19_a_missing_job_id_names_no_job(missing: str) -> None:
    (row,) = parse_csv(f"prompt,job_id,line\na star,{missing},{missing}\n".encode(), max_rows=5)
    assert (row.cells, row.job_id, row.first_line) == ({"prompt": "a star"}, None, None)


@pytest.mark.parametrize("cell", ["na", "NaN", "N/A", "None", "NANA"])
def test_S19_other_words_in_a_column_of_numbers_are_refused(cell: str) -> None:
    (row,) = parse_csv(f"prompt,seed\na,{cell}\n".encode(), max_rows=5)
    assert [(error.line, error.field) for error in row.errors] == [(2, "seed")]


@pytest.mark.parametrize(
    "first", ["#TYPE System.Management.Automation.PSCustomObject", '"#TYPE Selected.System.Object"']
)
def test_S15_the_first_line_of_powershell_is_passed_over_and_said(first: str) -> None:
    file = parse_csv(f'{first}\r\n"prompt";"seed"\r\n"a";"7"\r\n'.encode(), max_rows=5)
    assert [(row.line, row.cells) for row in file] == [(3, {"prompt": "a", "seed": 7})]
    assert [warning["code"] for warning in file.warnings] == ["type_line_skipped"]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_S19_cr_cr_lf_is_one_line_end(encoding: str) -> None:
    end = "\r\r\n"
    text = (
        f'prompt,negative_prompt{end}"a red heart","blue"{end}a star,x{end}"grün, two\r\nlines",{end}b,{end}'
    )
    assert rows(text.encode(encoding)) == [
        (2, {"prompt": "a red heart", "negative_prompt": "blue"}),
        (3, {"prompt": "a star", "negative_prompt": "x"}),
        (4, {"prompt": "grün, two\nlines"}),
        (6, {"prompt": "b"}),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("cell", ["two\rlines", '"two\rlines"', '"two\r\nlines"'])
def test_S19_a_lone_cr_inside_a_cell_is_a_line_break(end: str, cell: str) -> None:
    assert rows(f"prompt,seed{end}{cell},7{end}b,8{end}")[0] == (2, {"prompt": "two\nlines", "seed": 7})


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "'=1+1",
        "''=x",
        "-tis",
        "@home",
        "+1",
        "\ttab",
        "\n=x",
        "'tis",
        "it's",
        "#N/A",
        "'#N/A",
        "###",
        "Err:502",
        "\uff1d1",
        "a",
        '"',
        ";",
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_S22_what_we_write_comes_back_as_it_was(text: str, delimiter: str) -> None:
    cells = [(text, 7.25, True, 2**40), ("b", None, False, None)]
    header = ("prompt", "guidance_scale", "strict", "seed")
    written = "".join(write_csv(header, cells, delimiter=delimiter, marked=True))
    assert written[0] == "\ufeff"
    first, second = parse_csv(written.encode(), max_rows=5)
    assert first.cells == {"prompt": text, "guidance_scale": 7.25, "strict": True, "seed": 2**40}
    assert second.cells == {"prompt": "b", "strict": False}


def test_a_header_in_the_middle_is_passed_over_and_said() -> None:
    file = parse_csv("prompt,seed\na,1\n\ufeffprompt,seed\nb,2\n".encode(), max_rows=5)
    assert [row.line for row in file] == [2, 4]
    assert [warning["code"] for warning in file.warnings] == ["header_repeated"]


def test_quotes_of_a_word_processor_are_named() -> None:
    (row,) = parse_csv("prompt,seed\n“a, b”,1\n".encode(), max_rows=5)
    assert "“ and ” are not CSV quotes" in row.errors[0].detail
