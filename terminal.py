"""How the commands speak: answers on standard output, everything else on standard error.

Owns the exit codes and the options that many commands share. It knows no command.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from settings import ROOT

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
DEFAULT_DATA_DIR = ROOT / ".calotype"

DataDir = Annotated[
    Path, typer.Option("--data-dir", help="Where everything is kept.", envvar="CALOTYPE_DATA_DIR")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """One line of progress, as it stands."""
    out.print(line, markup=False, soft_wrap=True)


def fail(message: str, code: int = EXIT_REFUSED) -> NoReturn:
    """Say what went wrong and end."""
    err.print(f"calotype: {message}", markup=False, soft_wrap=True)
    sys.exit(code)


def require_folder(option: str, path: Path) -> None:
    """Refuse, before any work is done, a file that could not be written after it."""
    if not path.absolute().parent.is_dir():
        fail(f"{option}: the folder {path.absolute().parent} does not exist", EXIT_USAGE)


def print_json(value: object) -> None:
    """The machine's form of an answer, on standard output and alone there."""
    print(json.dumps(value, indent=2, default=str))  # noqa: T201  # rich would wrap and colour it
