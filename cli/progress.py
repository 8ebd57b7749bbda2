"""Shows progress: a bar on a terminal, lines of text in a pipe.

It writes to standard error only, so that standard output contains nothing but the result. It knows no jobs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cli.terminal import err

Show = Callable[[float, str], None]
"""Takes the fraction that is done, 0 to 1, and a few words about the current state."""


@contextmanager
def progress(label: str, console: Console = err) -> Iterator[Show]:
    """Show the progress of `label` each time the yielded function is called."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield _lines(label, console)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda done, what: bar.update(task, completed=done, description=f"{label} {what}")


def _lines(label: str, console: Console) -> Show:
    """Print a line for each new state and each tenth, so that an hour-long log stays short."""
    last: tuple[int, str] | None = None

    def show(done: float, what: str) -> None:
        nonlocal last
        now = (int(10 * done + 1e-9), what)
        if now != last:
            last = now
            console.print(f"{label} {what}, {10 * now[0]} %", markup=False, soft_wrap=True)

    return show
