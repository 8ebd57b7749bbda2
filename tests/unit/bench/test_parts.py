"""The parts of a benchmark: which file they are written to, and what is in it after each of them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.figures import Figure, figure_of
from bench.parts import output_of, run_parts


def test_the_file_of_a_whole_run_is_written_by_whole_runs_alone() -> None:
    known = ["a", "b"]
    whole = output_of("some.json", ["b", "a"], known, is_small=False)
    assert whole == Path("bench-output/some.json")
    assert whole not in (
        output_of("some.json", ["a"], known, is_small=False),
        output_of("some.json", known, known, is_small=True),
    )


def test_what_was_measured_before_a_part_fails_is_written(tmp_path: Path) -> None:
    out = tmp_path / "some.json"

    def first() -> Iterator[Figure]:
        yield figure_of("first", [1.0], 2.0, None, "", is_at_most=True)

    def second() -> Iterator[Figure]:
        yield figure_of("second", [3.0], 2.0, None, "", is_at_most=True)
        raise RuntimeError("the system has ended")

    with pytest.raises(RuntimeError, match="the system has ended"):
        run_parts({"first": first, "second": second}, out)
    written = json.loads(out.read_text(encoding="utf-8"))
    assert [(one["figure"], one["holds"]) for one in written] == [("first", True), ("second", False)]
