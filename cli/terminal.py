"""Output of the commands: results on standard output, everything else on standard error.

Owns the exit codes, the options that many commands share, and the rules for pipes, `NO_COLOR` and dumb
terminals. It knows no command.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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

DataDir = Annotated[Path, typer.Option("--data-dir", help="The data folder.", envvar="CALOTYPE_DATA_DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print only JSON.")]
Url = Annotated[
    str, typer.Option("--url", envvar="CALOTYPE_URL", help="Default: the server that runs in --data-dir.")
]
Key = Annotated[str, typer.Option("--api-key", envvar="CALOTYPE_API_KEY", show_envvar=True)]


class _Console(Console):
    """Rich's console that can drop all style, and that exits quietly if its reader has gone."""

    def speak_plainly(self) -> None:
        """Print without colour and bold from now on."""
        self._color_system = None

    def on_broken_pipe(self) -> None:
        """Exit like a program whose output was cut off by `head`."""
        end_quietly()


def _console(stream: TextIO | None, *, is_stderr: bool = False) -> _Console:
    """A console that colours a pipe with `FORCE_COLOR`, but does not treat it as a terminal."""
    is_terminal = stream is not None and stream.isatty()
    forced = bool(os.environ.get("FORCE_COLOR")) and not is_terminal
    return _Console(
        stderr=is_stderr,
        force_terminal=is_terminal,
        color_system="standard" if forced else "auto",
        highlight=False,
        emoji=False,  # ":heart:" in a prompt is text
    )


out = _console(sys.stdout)
err = _console(sys.stderr, is_stderr=True)


def without_style() -> None:
    """Turn off colour in our output, in Typer's help and in child processes."""
    from typer import rich_utils

    os.environ["NO_COLOR"] = "1"
    rich_utils.COLOR_SYSTEM = None
    for console in (out, err):
        console.speak_plainly()


if os.environ.get("NO_COLOR"):
    # Rich alone would keep bold and dim, which are escape codes too.
    without_style()


def say(line: str) -> None:
    """Print a line of progress without markup."""
    out.print(line, markup=False, soft_wrap=True)


def note(line: str) -> None:
    """Print a line on standard error, beside the result."""
    err.print(line, markup=False, soft_wrap=True)


def fail(message: str, code: int = EXIT_REFUSED) -> NoReturn:
    """Print the error and exit."""
    # Remove control characters that a server may have sent.
    lines = [printable(line) for line in message.splitlines()]
    err.print("calotype: " + "\n".join(lines), markup=False, soft_wrap=True)
    sys.exit(code)


@contextmanager
def needing_bench(where: str) -> Iterator[None]:
    """Import what measures or plans: an image that lacks it ends the command in one line; `where` has it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "bench":
            raise
        fail(f"this command needs {where}: there is no {error.name} here", EXIT_USAGE)


def end_quietly() -> NoReturn:
    """Exit without a message, as after SIGPIPE, because the reader of the output has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    sys.exit(EXIT_BROKEN_PIPE)


def require_folder(option: str, path: Path) -> None:
    """Fail before any work is done if the file could not be written afterwards."""
    folder = path.absolute().parent
    if not folder.is_dir():
        fail(f"{option}: the folder {folder} does not exist", EXIT_USAGE)
    if path.is_dir():
        fail(f"{option}: {path} is a folder, not a file", EXIT_USAGE)
    # An existing file such as /dev/stdout may be writable in a folder that is not.
    if not (os.access(path, os.W_OK) if path.exists() else os.access(folder, os.W_OK | os.X_OK)):
        fail(f"{option}: {path} cannot be written", EXIT_USAGE)


def print_text(text: str) -> None:
    """Print text unchanged on standard output: rich would wrap and colour it."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        end_quietly()


def print_json(value: object) -> None:
    """Print a result as JSON on standard output."""
    print_text(json.dumps(value, indent=2, default=str) + "\n")


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on a terminal; in a pipe, print one line per row, separated by tabs and never cut."""
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
    """The text without control characters, which could change the state of the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
