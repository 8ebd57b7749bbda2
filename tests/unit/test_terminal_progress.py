"""The promises of progress: a bar that moves on a terminal, few whole lines anywhere else."""

import io

from rich.console import Console

from cli.progress import progress


def shown_in(console: Console) -> None:
    with progress("job_1", console) as show:
        for percent in (0, 1, 2, 15, 15, 16, 55, 100):
            show(percent / 100, "running" if percent else "queued")
        show(1.0, "succeeded")


def test_in_a_pipe_a_line_comes_with_each_state_and_each_tenth() -> None:
    file = io.StringIO()
    shown_in(Console(file=file))
    assert file.getvalue().splitlines() == [
        "job_1 queued, 0 %",
        "job_1 running, 0 %",
        "job_1 running, 10 %",
        "job_1 running, 50 %",
        "job_1 running, 100 %",
        "job_1 succeeded, 100 %",
    ]


def test_on_a_terminal_that_cannot_move_its_cursor_there_are_lines_too() -> None:
    file = io.StringIO()
    shown_in(Console(file=file, force_terminal=True, _environ={"TERM": "dumb"}))
    assert "\x1b" not in file.getvalue()
    assert len(file.getvalue().splitlines()) == 6


def test_on_a_terminal_a_bar_is_drawn_and_taken_away_at_the_end() -> None:
    file = io.StringIO()
    shown_in(Console(file=file, force_terminal=True, width=80, _environ={"TERM": "xterm"}))
    assert "100%" in file.getvalue()
    assert file.getvalue().endswith("\x1b[1A\x1b[2K")
