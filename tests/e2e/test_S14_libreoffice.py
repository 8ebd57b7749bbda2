"""LibreOffice itself writes the files, on this machine: skipped where it is not installed.

`make test-libreoffice` asks for it; its files of one day are among the fixtures, which every run reads.
"""

import shutil
from pathlib import Path

import pytest

from tests.fixtures.prompts_as_csv import FOLDER, LIBREOFFICE, ROWS, by_libreoffice
from web.csv.rows import parse_csv


@pytest.mark.skipif(shutil.which("soffice") is None, reason="needs Debian's libreoffice-calc")
def test_S14_S15_S16_what_libreoffice_writes_here_is_read(tmp_path: Path) -> None:
    written = dict(by_libreoffice(tmp_path))
    assert written.keys() == LIBREOFFICE.keys()
    for name, data in written.items():
        encoding = "mac-roman" if name.endswith("mac-roman") else None
        assert [row.cells for row in parse_csv(data, max_rows=10, encoding=encoding)] == list(ROWS), name
        assert (FOLDER / f"{name}.csv").exists()
