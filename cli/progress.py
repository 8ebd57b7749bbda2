"""How a command shows that something goes on: a bar on a terminal, lines of text in a pipe.

Writes to standard error alone, so that standard output holds the answer and nothing else. Knows nothing
of jobs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cli.terminal import err

Show = Callable[[float, str], None]
"""Takes what is done, 0 to 1, and what goes on now, in a few words."""


@contextmanager
def progress(label: str, console: Console = err) -> Iterator[Show]:
    """Show how far `label` is, each time that the function it yields is called."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield _lines(label, console)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda done, what: bar.update(task, completed=done, description=f"{label} {what}")


def _lines(label: str, console: Console) -> Show:
    """A line for each new word and each new tenth, so that a log of an hour stays short."""
    last: tuple[int, str] | None = None

    def show(done: float, what: str) -> None:
        nonlocal last
        now = (int(10 * done + 1e-9), what)
        if now != last:
            last = now
            console.print(f"{label} {what}, {10 * now[0]} %", markup=False, soft_wrap=True)

    return show
