"""Parsing a CSV of prompts: bytes become rows with line numbers and typed cells, or errors by line.

It reads one row at a time, and counts columns, lines and characters before it parses them. Pure: no HTTP, no
rows of Postgres, no limits of a model.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from typing import Any, BinaryIO

from catalogue.parameters import ParameterType
from web.api.parameter_fields import OWN
from web.csv.cells import is_empty, is_missing
from web.csv.columns import LEFT_OUT, Column
from web.csv.header import (
    MAX_COLUMNS,
    UNTITLED,
    Dialect,
    Titles,
    columns_of,
    dialect_of,
    has_too_many_columns,
    is_blank,
    letters_of,
    named_in,
    report_columns_in,
)
from web.csv.text import BREAK_IN_A_CELL, MAX_LINE_CHARACTERS, Lines, encoding_of, refused
from web.refusals import FieldError, InvalidCsv

MAX_ROW_CHARACTERS = MAX_LINE_CHARACTERS
MAX_WARNINGS = 10
MAX_LINES_PER_ROW = 10  # on average, for empty lines and cells with line breaks


@dataclass(frozen=True)
class CsvRow:
    """One row: the line where it starts, and its cells that are not empty, typed by their column.

    `job_id` is the old job that the row names, and `first_line` the line of that job's row in the file that
    created it; both are columns of reports.
    """

    line: int
    cells: dict[str, Any]
    errors: tuple[FieldError, ...] = ()
    job_id: str | None = None
    first_line: int | None = None


class CsvFile:
    """The rows of a file, one at a time, and how it was read.

    `read_as` is the delimiter and the encoding in words. `warnings` are assumptions, and grow while rows
    are read.
    """

    def __init__(self, read_as: str, warnings: list[dict[str, str]], rows: Iterator[CsvRow]) -> None:
        self.read_as = read_as
        self.warnings = warnings
        self._rows = rows

    def __iter__(self) -> "CsvFile":
        return self

    def __next__(self) -> CsvRow:
        return next(self._rows)


def parse_csv(
    data: BinaryIO | bytes,
    *,
    max_rows: int,
    delimiter: str | None = None,
    encoding: str | None = None,
    own: Mapping[str, ParameterType] | None = None,
) -> CsvFile:
    """Parse a file with a header, which is read while its rows are; a row with invalid cells has `errors`.

    `delimiter` is a character and `encoding` a name from `known_encoding`; both are detected if None. `own`
    are the parameters that models declare, with their types; each is a column. Raises `InvalidCsv` if the
    file cannot be read, possibly after its first rows.
    """
    file = BytesIO(data) if isinstance(data, bytes) else data
    found = encoding_of(file, encoding)
    source = _RowLines(Lines(file, found, max_lines=max_rows * MAX_LINES_PER_ROW))
    warnings = (
        [{"code": "encoding_assumed", "field": "encoding", "detail": found.assumed}] if found.assumed else []
    )
    titles = Titles(own or ())
    header_line, dialect = _begin(source, titles, delimiter, warnings)
    reader = _Reader(source, header_line, dialect, titles, own or {}, warnings, max_rows)
    return CsvFile(f"{dialect.words}, {found.words}", warnings, reader.rows())


def refuse_rows(errors: Sequence[FieldError], *, num_errors: int | None = None) -> InvalidCsv:
    """The errors by line as a refusal; its detail is the first. `num_errors` counts all."""
    first = errors[0]
    field = f", {first.field}" if first.field else ""
    return InvalidCsv(f"line {first.line}{field}: {first.detail}", errors, num_errors=num_errors)


class _RowLines:
    """The lines of a file for the CSV reader; those of the current row are kept for its errors."""

    def __init__(self, lines: Lines) -> None:
        self._source = lines
        self.row: list[str] = []
        self.first_line = 1
        self._characters_left = MAX_ROW_CHARACTERS
        self._lines = self._read()

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def _read(self) -> Iterator[str]:
        for line in self._source:
            self.row.append(line)
            if len(line) > self._characters_left:
                raise csv.Error(f"the row has more than {MAX_ROW_CHARACTERS} characters")
            self._characters_left -= len(line) + 1
            yield line + "\n"

    def end_row(self) -> None:
        """Start another row with the next line."""
        self.row.clear()
        self.first_line = self._source.num_lines + 1
        self._characters_left = MAX_ROW_CHARACTERS


def _begin(
    source: _RowLines, titles: Titles, given: str | None, warnings: list[dict[str, str]]
) -> tuple[str, Dialect]:
    """The header's first line and its dialect; raises `InvalidCsv` for a file without a header."""
    named = None
    while (line := _first_text(source)) is not None:
        if source.first_line == 1 and line.lstrip('"').startswith("#TYPE "):
            detail = "line 1 is the #TYPE line that PowerShell writes; it was skipped"
            warnings.append({"code": "type_line_skipped", "field": "", "detail": detail})
            source.end_row()
            continue
        found = named_in(line.removesuffix("\n")) if source.first_line == 1 else None
        if found is None:
            return line, dialect_of(line.removesuffix("\n"), titles, given, named)
        named = found
        source.end_row()
    raise _no_row()


def _first_text(source: _RowLines) -> str | None:
    """The next line that is not blank; its columns are counted before it is parsed."""
    while True:
        try:
            line, error = next(iter(source), None), None
        except csv.Error as found:
            line, error = source.row[-1], found
        if line is not None and has_too_many_columns(line):
            raise _too_many_columns(source.first_line)
        if error is not None:
            raise refused(str(error), source.first_line) from error
        if line is None or not is_blank(line):
            return line
        source.end_row()


class _Reader:
    """The rows of one file, after its header."""

    def __init__(
        self,
        source: _RowLines,
        header_line: str,
        dialect: Dialect,
        titles: Titles,
        own: Mapping[str, ParameterType],
        warnings: list[dict[str, str]],
        max_rows: int,
    ) -> None:
        self._source, self._dialect, self._warnings, self._max_rows = source, dialect, warnings, max_rows
        self._cells = csv.reader(
            chain([header_line], source),
            delimiter=dialect.delimiter,
            skipinitialspace=dialect.skips_spaces,
            strict=True,
        )
        self._columns: list[str] = []
        self._titles = [title.strip() for title in self._next() or []]
        if any(self._titles[MAX_COLUMNS:]):
            raise _too_many_columns(source.first_line)
        del self._titles[MAX_COLUMNS:]  # these are empty
        self._columns, errors = columns_of(self._titles, titles, source.first_line)
        if errors:
            raise refuse_rows(errors)
        self._readers = [Column(name, own.get(name), dialect.delimiter) for name in self._columns]
        self._has_report = not {"job_id", "id", "line"}.isdisjoint(self._columns)
        self._unknown_without_jobs = report_columns_in(self._titles, titles, source.first_line)
        source.end_row()

    def rows(self) -> Iterator[CsvRow]:
        """Every row that is not blank; raises `InvalidCsv`."""
        num_rows = 0
        while (cells := self._next()) is not None:
            line = self._source.first_line
            if self._repeats_header(cells):
                self._warn_of_header(line)
            elif not all(map(is_empty, filter(None, cells))):
                num_rows += 1
                if num_rows > self._max_rows:
                    raise refused(f"the file has more than {self._max_rows} rows", line)
                row = self._row(line, cells)
                if row.job_id:
                    self._unknown_without_jobs = []
                yield row
            self._source.end_row()
        if num_rows == 0:
            raise _no_row()
        if self._unknown_without_jobs:
            raise refuse_rows(self._unknown_without_jobs)

    def _next(self) -> list[str] | None:
        try:
            cells = next(self._cells, None)
        except csv.Error as error:
            raise self._unreadable(error) from error
        if cells is None or not any(BREAK_IN_A_CELL in line for line in self._source.row):
            return cells
        return [cell.replace(BREAK_IN_A_CELL, "\n") for cell in cells]

    def _unreadable(self, error: csv.Error) -> InvalidCsv:
        """The error, placed at its beginning: an unclosed quote is noticed only lines later."""
        source = self._source
        place = _open_quote(source.row, self._dialect)
        if place is None:
            return refused(str(error), source.first_line)
        line, column = source.first_line + place.line, self._title(place.column)
        if place.goes_on_in is None:
            because = f"not closed: {error}" if "characters" in str(error) else "never closed"
            return refused(f"a quote is opened here and {because}", line, column)
        detail = (
            f"is not valid CSV: the quoted cell that begins here ends in line "
            f"{source.first_line + place.goes_on_in}, and text follows the closing quote; "
            "inside quotes, write a quote twice"
        )
        return refused(detail, line, column)

    def _title(self, place: int) -> str:
        known = self._columns[place] if place < len(self._columns) else UNTITLED
        return known or f"column {letters_of(place)}"

    def _repeats_header(self, cells: Sequence[str]) -> bool:
        if self._titles[:1] != [cell.strip() for cell in cells[:1]]:
            return False
        titles = [cell.strip() for cell in cells[:MAX_COLUMNS]]
        return titles == self._titles and not any(cells[MAX_COLUMNS:])

    def _warn_of_header(self, line: int) -> None:
        if len(self._warnings) < MAX_WARNINGS:
            detail = (
                f"line {line} repeats the header and was skipped: does the file consist of several files?"
            )
            self._warnings.append({"code": "header_repeated", "field": "", "detail": detail})

    def _row(self, line: int, cells: Sequence[str]) -> CsvRow:
        # Excel omits empty cells at the end of a row, and some programs add some.
        if len(cells) > len(self._columns) and not all(
            map(is_empty, filter(None, cells[len(self._columns) :]))
        ):
            return CsvRow(line, {}, (FieldError("", self._too_many(cells), line),))
        typed: dict[str, Any] = {}
        errors = []
        for place, (column, cell) in enumerate(zip(self._readers, cells, strict=False)):
            try:
                value = column.value_of(cell)
                if value is LEFT_OUT:
                    continue  # so the default applies
                if column.is_own:
                    typed.setdefault(OWN, {})[column.name] = value
                elif column.name == UNTITLED:
                    self._check_untitled(place, cell)
                else:
                    typed[column.name] = value
            except ValueError as error:
                errors.append(FieldError(column.name or f"column {letters_of(place)}", str(error), line))
        if not self._has_report:
            return CsvRow(line, typed, tuple(errors))
        texts = {
            column: "" if is_missing(column, cell) else cell.strip()
            for column, cell in zip(self._columns, cells, strict=False)
        }
        job_id = texts.get("job_id") or (
            texts.get("id", "") if texts.get("id", "").startswith("job_") else ""
        )
        if job_id and not typed.get("prompt", "").strip():
            typed.pop("prompt", None)
        return CsvRow(line, typed, tuple(errors), job_id or None, _line_number(texts.get("line", "")))

    def _too_many(self, cells: Sequence[str]) -> str:
        detail = f"the row has {len(cells)} cells, the header {len(self._columns)}"
        if any("“" in cell or "”" in cell for cell in cells):
            return f'{detail}; “ and ” are not CSV quotes, which are straight: "'
        return f"{detail}; quote cells that contain {_SINGULAR.get(self._dialect.delimiter, 'a delimiter')}"

    @staticmethod
    def _check_untitled(place: int, cell: str) -> None:
        # pandas writes row numbers as a first column without a title.
        if place > 0 or not cell.strip().isdecimal():
            raise ValueError("this column has no title in the header but a cell in this row")


@dataclass(frozen=True)
class _Place:
    """Where a quoted cell begins, relative to the row's first line and cell, and the line where text follows
    its closing quote."""

    line: int
    column: int
    goes_on_in: int | None


def _open_quote(lines: Sequence[str], dialect: Dialect) -> _Place | None:
    """The quoted cell in these lines at which parsing stopped."""
    column = begun_line = 0
    state = "start"
    for number, line in enumerate(lines):
        for character in line + "\n":
            if state == "quoted":
                state = "quote" if character == '"' else "quoted"
            elif character == '"' and state == "quote":
                state = "quoted"
            elif character == '"' and state == "start":
                state, begun_line = "quoted", number
            elif character == dialect.delimiter:
                state, column = "start", column + 1
            elif state == "quote" and character != "\n":
                return _Place(begun_line, column, number)
            elif state == "start" and character != "\n" and not (character == " " and dialect.skips_spaces):
                state = "text"
    return _Place(begun_line, column, None) if state == "quoted" else None


_SINGULAR = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a pipe"}


def _line_number(text: str) -> int | None:
    text = text.removesuffix(".0")  # pandas writes whole numbers like this if a value is missing
    return int(text) if text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text) > 0 else None


def _too_many_columns(line: int) -> InvalidCsv:
    return refused(f"the header has more than {MAX_COLUMNS} columns", line)


def _no_row() -> InvalidCsv:
    return refused("the file has no rows: a header line with 'prompt' and at least one row are required", 1)
