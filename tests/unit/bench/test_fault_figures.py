"""The figures of a fault: the longest answer, what was refused, every missed bar, and their JSON."""

from dataclasses import replace
from pathlib import Path

from bench.fault_figures import Cell, cell_of, failures, line, read, write
from bench.fault_load import Answer

JOB = {"id": "0190"}


def answer(kind: str, seconds: float, status: int | None = 200, *, says_when: bool = False) -> Answer:
    return Answer(kind, 0.0, seconds, status, "", says_when, JOB if status == 202 else {})


def cell(part: str = "broker", *more: Answer, num_lost: int = 0, well_seconds: float | None = 2.0) -> Cell:
    answers = [
        answer("healthz", 0.1),
        answer("healthz", 0.3),
        answer("readyz", 0.2),
        answer("status", 0.2),
        answer("submission", 0.4, 202),
    ]
    return cell_of(
        part,
        "hung",
        20.0,
        [*answers, *more],
        num_accepted=1,
        num_lost=num_lost,
        num_doubled=0,
        well_seconds=well_seconds,
    )


def test_a_line_has_the_longest_answer_of_each_kind_and_how_many_there_were() -> None:
    assert failures([cell()]) == []
    assert line(cell()) == (
        "| broker | hung | 0.30 s of 2 | 0.20 s of 1 | 0.40 s of 1 | 0.20 s of 1 | 1, none | 0 of 1 | 2.0 s |"
    )


def test_an_answer_that_never_came_misses_the_bar_however_soon_its_client_left() -> None:
    (missed,) = failures([cell("broker", answer("healthz", 0.5, None))])
    assert "unanswered 1" in missed
    assert "0.50 s of 3, 1 unanswered" in line(cell("broker", answer("healthz", 0.5, None)))


def test_a_refusal_is_right_only_without_postgres_and_only_if_it_says_when_to_come_again() -> None:
    told = answer("submission", 5.0, 503, says_when=True)
    assert failures([cell("postgres", told)]) == []
    assert failures([cell("broker", replace(told, seconds=0.5))]) == [
        "broker hung: submissions were refused: {'503': 1}"
    ]
    (missed,) = failures([cell("postgres", answer("submission", 5.0, 503))])
    assert "1 refusals without Retry-After" in missed


def test_each_other_bar_is_missed_by_name() -> None:
    missed = failures(
        [
            cell("s3", answer("readyz", 2.5), answer("submission", 1.5, 202)),
            cell("postgres", answer("submission", 8.5, 202), num_lost=1, well_seconds=None),
        ]
    )
    assert [what.partition(":")[2].split()[0] for what in missed] == [
        "readyz", "submission", "submission", "1", "well",
    ]  # fmt: skip


def test_cells_come_back_from_json_as_they_were(tmp_path: Path) -> None:
    cells = [cell(), cell("postgres", answer("submission", 5.0, 503), well_seconds=None)]
    write(cells, tmp_path / "out" / "faults.json")
    assert read(tmp_path / "out" / "faults.json") == cells
