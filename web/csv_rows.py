"""Prompts as CSV: a file's bytes become rows with line numbers and typed cells, or a report by line.

It reads a row at a time and counts columns, lines and characters before it parses them. It also writes CSV
that a spreadsheet will not run. Pure: no HTTP, no rows of Postgres, no limits of a model.
"""

import codecs
import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from web.refusals import FieldError, InvalidCsv
from web.schemas import JOB_FIELDS

COLUMNS = tuple(name for name in JOB_FIELDS if name != "lane")  # a batch is always bulk
INTEGERS = frozenset(
    {"width", "height", "num_inference_steps", "step_cache", "seed", "num_images", "output_quality"}
)
NUMBERS = frozenset({"guidance_scale", "guidance_cutoff", "deadline_seconds"})
TEXTS = frozenset(
    {"prompt", "negative_prompt", "model", "preset", "scheduler", "output_format", "webhook_url"}
)
BOOLEANS = {"true": True, "false": False}  # of the column `strict`
MAX_NUMBER_CHARACTERS = 40
MAX_COLUMNS = 64
MAX_ROW_CHARACTERS = 131_072
MAX_LINES_PER_ROW = 10  # on average: empty lines and those of cells with several
DECODED_BYTES = 65_536

_OTHER_FORMATS = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x1f\x8b": "gzip-compressed",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet document",
    b"%PDF": "a PDF",
}
# What makes Excel or LibreOffice read a cell as a formula, full-width forms included.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001


@dataclass(frozen=True)
class CsvRow:
    """One row: the line where it starts, and the cells that are not empty, typed by their column."""

    line: int
    cells: dict[str, Any]
    errors: tuple[FieldError, ...] = ()


def parse_csv(data: bytes, *, max_rows: int) -> Iterator[CsvRow]:
    """The rows of a file with a header, one at a time; a row with wrong cells carries its errors.

    Raises `InvalidCsv` when the file as a whole cannot be read, also after its first rows.
    """
    _check_bytes(data)
    source = _BoundedLines(data, max_lines=max_rows * MAX_LINES_PER_ROW)
    reader = csv.reader(source, strict=True)
    columns: list[str] | None = None
    num_rows = 0
    line = 1
    try:
        for cells in reader:
            source.end_row()
            if any(cell.strip() for cell in cells):
                if columns is None:
                    columns = _header(cells, line)
                    source.max_columns = None
                else:
                    num_rows += 1
                    if num_rows > max_rows:
                        raise _refused(f"the file has more than {max_rows} rows", line)
                    yield _row(line, columns, cells)
            line = reader.line_num + 1
    except csv.Error as error:
        raise _refused(f"cannot be read as CSV: {error}", reader.line_num) from error
    if num_rows == 0:
        raise _refused(
            "the file has no row: a header line with 'prompt' and at least one row are required", 1
        )


class _BoundedLines:
    """The file's lines for the CSV reader, decoded as they are asked for, and counted before it sees them.

    `max_columns` holds until the header is known: no column has a comma in its name.
    """

    def __init__(self, data: bytes, *, max_lines: int) -> None:
        self.max_columns: int | None = MAX_COLUMNS
        self._text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
        self._max_lines, self._num_lines = max_lines, 0
        self._characters_left = MAX_ROW_CHARACTERS

    def __iter__(self) -> "_BoundedLines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._characters_left + 1)
        if not line:
            raise StopIteration
        self._num_lines += 1
        self._characters_left -= len(line)
        if self._num_lines > self._max_lines:
            raise _refused(f"the file has more than {self._max_lines} lines", self._num_lines)
        if self.max_columns is not None and line.count(",") >= self.max_columns:
            raise _refused(f"the header has more than {self.max_columns} columns", self._num_lines)
        if self._characters_left < 0:
            raise _refused(f"the row has more than {MAX_ROW_CHARACTERS} characters", self._num_lines)
        return line

    def end_row(self) -> None:
        """What follows belongs to another row."""
        self._characters_left = MAX_ROW_CHARACTERS


def _check_bytes(data: bytes) -> None:
    for start, name in _OTHER_FORMATS.items():
        if data.startswith(start):
            raise _refused(f"the file is {name}, not CSV", 1)
    position = data.find(b"\0")
    if position >= 0:
        raise _refused("the file holds a NUL byte; CSV is text", _line_at(data, position))
    # A piece at a time: as one text, the file would take up to four times its bytes.
    decoder = codecs.getincrementaldecoder("utf-8")()
    for position in range(0, len(data), DECODED_BYTES):
        piece = data[position : position + DECODED_BYTES]
        num_kept = len(decoder.getstate()[0])  # of a character that began in the piece before
        try:
            decoder.decode(piece, final=position + DECODED_BYTES >= len(data))
        except UnicodeDecodeError as error:
            line = _line_at(data, position - num_kept + error.start)
            raise _refused("the file is not UTF-8", line) from error


def _line_at(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1


def _header(cells: Sequence[str], line: int) -> list[str]:
    columns = [cell.strip() for cell in cells]
    known = ", ".join(COLUMNS)
    errors = [
        FieldError(column[:100], f"is not a known column; there is: {known}", line)
        for column in columns
        if column not in COLUMNS
    ]
    errors += [
        FieldError(column, "this column is there twice", line)
        for column, num_times in sorted(Counter(columns).items())
        if column in COLUMNS and num_times > 1
    ]
    if "prompt" not in columns:
        errors.append(FieldError("prompt", "this column is required in the header, the first line", line))
    if errors:
        raise refuse_rows(errors)
    return columns


def _row(line: int, columns: Sequence[str], cells: Sequence[str]) -> CsvRow:
    if len(cells) != len(columns):
        detail = f"the row has {len(cells)} cells, the header {len(columns)}; quote cells that hold a comma"
        return CsvRow(line, {}, (FieldError("", detail, line),))
    typed: dict[str, Any] = {}
    errors = []
    for column, cell in zip(columns, cells, strict=True):
        if column != "prompt" and not cell.strip():
            continue  # left out: the default
        try:
            typed[column] = typed_cell(column, cell)
        except ValueError as error:
            errors.append(FieldError(column, str(error), line))
    return CsvRow(line, typed, tuple(errors))


def typed_cell(column: str, cell: str) -> str | int | float:
    """The value that a field's text means; raises `ValueError` saying what it should be."""
    text = cell.strip()
    if column not in TEXTS and len(text) > MAX_NUMBER_CHARACTERS:
        raise ValueError(f"has more than {MAX_NUMBER_CHARACTERS} characters")
    if column in INTEGERS:
        if not re.fullmatch(r"[+-]?[0-9]+", text):
            raise ValueError("should be a whole number")
        return int(text)
    if column in NUMBERS:
        if not re.fullmatch(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?", text):
            raise ValueError("should be a number, with a point and without separators")
        number = float(text)
        if not math.isfinite(number):
            raise ValueError("should be a finite number")
        return number
    if column == "strict":
        if text.lower() not in BOOLEANS:
            raise ValueError("should be true or false")
        return BOOLEANS[text.lower()]
    if column in ("prompt", "negative_prompt"):
        return cell.replace("\r\n", "\n")  # how some programs break a line inside a cell
    return text


def _refused(detail: str, line: int) -> InvalidCsv:
    return refuse_rows([FieldError("", detail, line)])


def refuse_rows(errors: Sequence[FieldError], *, num_errors: int | None = None) -> InvalidCsv:
    """The report by line as a refusal; its detail tells the first. `num_errors` counts all."""
    first = errors[0]
    field = f", {first.field}" if first.field else ""
    return InvalidCsv(f"line {first.line}{field}: {first.detail}", errors, num_errors=num_errors)


def write_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """CSV text, a piece a row, with cells that could be formulae made harmless."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(header)
    yield _taken(buffer)
    for row in rows:
        writer.writerow([harmless(cell) for cell in row])
        yield _taken(buffer)


def harmless(cell: object) -> object:
    """A text cell that no spreadsheet reads as a formula; numbers and nothing stay as they are."""
    if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS):
        return "'" + cell
    return "" if cell is None else cell


def _taken(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text
