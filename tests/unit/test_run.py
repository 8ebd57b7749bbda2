"""`make test` runs a few tests that failed beside the others once more by themselves; they stay failed."""

from pathlib import Path

import pytest

from tests.run import MAX_AGAIN, Part, main

FAILS_ONCE = """
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_it(number):
    seen = Path({folder!r}, f"seen-{{number}}")
    was_there = seen.exists()
    seen.touch()
    assert was_there or number >= {failing}
"""


def part_of(folder: Path, *, count: int, failing: int) -> dict[str, Part]:
    file = folder / "test_it.py"
    file.write_text(FAILS_ONCE.format(folder=str(folder), count=count, failing=failing))
    return {"some": Part((str(file),))}


def test_what_fails_beside_the_others_and_passes_by_itself_is_told_and_has_failed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(part_of(tmp_path, count=5, failing=2)) == 1
    lines = capfd.readouterr().out.splitlines()
    assert "==> what failed of some, once more by itself" in lines
    assert lines[-2] == "==> what failed of some passes by itself"
    assert lines[-1].startswith("==> 3 passed, 2 failed, 0 skipped in ")


def test_more_failures_than_a_busy_machine_explains_are_failures(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(part_of(tmp_path, count=5, failing=MAX_AGAIN + 1)) == 1
    lines = capfd.readouterr().out.splitlines()
    assert not any("once more" in line for line in lines)
    assert lines[-1].startswith(f"==> 1 passed, {MAX_AGAIN + 1} failed, 0 skipped in ")


def test_what_fails_again_by_itself_has_failed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    parts = part_of(tmp_path, count=1, failing=1)
    (tmp_path / "test_it.py").write_text("def test_it():\n    assert False\n")
    assert main(parts) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[-2] == "==> what failed of some fails by itself"
    assert lines[-1].startswith("==> 0 passed, 1 failed, 0 skipped in ")
