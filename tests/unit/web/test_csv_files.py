"""One table as many programs write it: the same rows are read from each file, and it is said how."""

from pathlib import Path

import pytest

from tests.fixtures.prompts_as_csv import COLUMNS, FOLDER, ROWS, by_csv, by_hand
from web.csv.rows import parse_csv

FILES = sorted(FOLDER.glob("*.csv"))
READ_AS = {
    "dos-end-of-file": "commas, Windows-1252",
    "excel-mac": "commas, Mac OS Roman",
    "excel-mac-csv-utf-8": "commas, UTF-8",
    "excel-mac-text": "tabs, Mac OS Roman",
    "excel-mac-utf-16-text": "tabs, UTF-16 LE",
    "excel-mac-windows-csv": "commas, Windows-1252",
    "excel-windows-csv-utf-8": "commas, UTF-8",
    "excel-windows-english": "commas, Windows-1252",
    "excel-windows-french": "semicolons, Windows-1252",
    "excel-windows-german": "semicolons, Windows-1252",
    "excel-windows-german-csv-utf-8": "semicolons, UTF-8",
    "excel-windows-german-unicode-text": "tabs, UTF-16 LE",
    "excel-windows-sep": "semicolons, Windows-1252",
    "excel-windows-text": "tabs, Windows-1252",
    "excel-windows-trailing-columns": "commas, Windows-1252",
    "excel-windows-unicode-text": "tabs, UTF-16 LE",
    "google-sheets": "commas, UTF-8",
    "libreoffice-comma-german-utf-8": "commas, UTF-8",
    "libreoffice-comma-quoted": "commas, UTF-8",
    "libreoffice-comma-utf-8": "commas, UTF-8",
    "libreoffice-pipe-mac-roman": "pipes, Mac OS Roman",
    "libreoffice-semicolon-french-windows-1252": "semicolons, Windows-1252",
    "libreoffice-semicolon-german-utf-8": "semicolons, UTF-8",
    "libreoffice-tab-utf-16": "tabs, UTF-16 LE",
    "numbers": "commas, UTF-8",
    "numbers-german": "semicolons, UTF-8",
    "pandas": "commas, UTF-8",
    "pandas-index": "commas, UTF-8",
    "pandas-index-twice": "commas, UTF-8",
    "pandas-quoted": "commas, UTF-8",
    "pandas-semicolon-comma": "semicolons, Windows-1252",
    "pandas-tab": "tabs, UTF-8",
    "python-excel": "commas, UTF-8",
    "python-excel-tab": "tabs, UTF-8",
    "python-excel-text-mode": "commas, UTF-8",
    "python-unix": "commas, UTF-8",
    "utf-16-be": "tabs, UTF-16 BE",
    "utf-16-without-mark": "tabs, UTF-16 LE",
}
GIVEN = {"libreoffice-pipe-mac-roman": "mac-roman"}  # with LF, nothing in it says that it is of a Mac


def test_every_file_is_read_by_the_test_below() -> None:
    assert {path.stem for path in FILES} == READ_AS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_S14_S15_S16_S19_the_same_rows_are_read_whatever_program_wrote_them(path: Path) -> None:
    file = parse_csv(path.read_bytes(), max_rows=10, encoding=GIVEN.get(path.stem))
    rows = list(file)
    assert [row.errors for row in rows] == [()] * len(ROWS)
    assert [row.cells for row in rows] == list(ROWS)
    assert file.read_as == READ_AS[path.stem]
    is_assumed = path.stem not in GIVEN and file.read_as.endswith(("Windows-1252", "Roman"))
    assert [warning["code"] for warning in file.warnings] == ["encoding_assumed"] * is_assumed


def test_the_files_are_those_that_the_programs_write() -> None:
    for name, data in (*by_hand(), *by_csv()):
        assert (FOLDER / f"{name}.csv").read_bytes() == data, name
    assert {name for row in ROWS for name in row} == set(COLUMNS)
