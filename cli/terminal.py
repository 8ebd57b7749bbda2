"""How the commands speak: answers on standard output, everything else on standard error.

Owns the exit codes, the options that many commands share, and what a pipe, `NO_COLOR` and a dumb terminal
change. It knows no command.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from settings import Settings

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
DEFAULT_DATA_DIR = Path(Settings.model_fields["data_dir"].default)

DataDir = Annotated[
    Path, typer.Option("--data-dir", help="Where everything is kept.", envvar="CALOTYPE_DATA_DIR")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Url = Annotated[str, typer.Option("--url", envvar="CALOTYPE_URL", help="Default: what runs in --data-dir.")]
Key = Annotated[str, typer.Option("--api-key", envvar="CALOTYPE_API_KEY", show_envvar=True)]


class _Console(Console):
    """Rich's, but for two things: it can be told to use no style, and a reader that left is no failure."""

    def speak_plainly(self) -> None:
        """No colour and no weight from here on."""
        self._color_system = None

    def on_broken_pipe(self) -> None:
        """End as a program does that `head` has cut off."""
        end_quietly()


def _console(stream: TextIO | None, *, is_stderr: bool = False) -> _Console:
    """`FORCE_COLOR` colours a pipe, and makes no terminal of it: what it carries may be kept as a log."""
    is_terminal = stream is not None and stream.isatty()
    forced = bool(os.environ.get("FORCE_COLOR")) and not is_terminal
    return _Console(
        stderr=is_stderr,
        force_terminal=is_terminal,
        color_system="standard" if forced else "auto",
        highlight=False,
        emoji=False,  # a prompt's ":heart:" is five letters and two colons
    )


out = _console(sys.stdout)
err = _console(sys.stderr, is_stderr=True)


def without_style() -> None:
    """Colour nothing: neither our lines nor Typer's help, nor those of a child process."""
    from typer import rich_utils

    os.environ["NO_COLOR"] = "1"
    rich_utils.COLOR_SYSTEM = None
    for console in (out, err):
        console.speak_plainly()


if os.environ.get("NO_COLOR"):
    # Rich alone would leave bold and dim, which are escape codes as well.
    without_style()


def say(line: str) -> None:
    """One line of progress, as it stands."""
    out.print(line, markup=False, soft_wrap=True)


def note(line: str) -> None:
    """One line of progress beside an answer, on standard error."""
    err.print(line, markup=False, soft_wrap=True)


def fail(message: str, code: int = EXIT_REFUSED) -> NoReturn:
    """Say what went wrong and end."""
    # Without what a server's answer could do to a terminal.
    lines = [printable(line) for line in message.splitlines()]
    err.print("calotype: " + "\n".join(lines), markup=False, soft_wrap=True)
    sys.exit(code)


def end_quietly() -> NoReturn:
    """Nobody reads what we write any more: end without a word, as SIGPIPE would have it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    sys.exit(EXIT_BROKEN_PIPE)


def require_folder(option: str, path: Path) -> None:
    """Refuse, before any work is done, a file that could not be written after it."""
    folder = path.absolute().parent
    if not folder.is_dir():
        fail(f"{option}: the folder {folder} does not exist", EXIT_USAGE)
    if path.is_dir():
        fail(f"{option}: {path} is a folder, not a file", EXIT_USAGE)
    # What exists already, as /dev/stdout, may be written where nothing new may be made.
    if not (os.access(path, os.W_OK) if path.exists() else os.access(folder, os.W_OK | os.X_OK)):
        fail(f"{option}: {path} cannot be written", EXIT_USAGE)


def print_text(text: str) -> None:
    """Text for a machine or a file, on standard output and unchanged: rich would wrap and colour it."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        end_quietly()


def print_json(value: object) -> None:
    """The machine's form of an answer, on standard output and alone there."""
    print_text(json.dumps(value, indent=2, default=str) + "\n")


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table for eyes on a terminal; in a pipe one line a row, with tabs between, never cut to a width."""
    shown = [["" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    if not out.is_terminal:
        print_text("".join("\t".join(cells) + "\n" for cells in [list(headings), *shown]))
        return
    table = Table(box=None, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0)
    for cells in shown:
        table.add_row(*map(Text, cells))
    out.print(table)


def printable(text: str) -> str:
    """The same text without the control characters by which a prompt or a log could drive a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
