"""Prints the command that `make install` writes to `.venv/bin/calotype`: this tree, run by this interpreter.

The tree's folder is first on Python's path, so that no `models` or `settings` of another distribution, and
none in the current folder, is imported in place of ours. Knows the standard library alone.
"""

import shlex
import sys
from pathlib import Path


def command(python: Path, tree: Path) -> str:
    """The three lines, for that interpreter and that tree."""
    program, folder = shlex.quote(str(python)), shlex.quote(str(tree))
    return (
        "#!/bin/sh\n"
        "# Made by `make install`: calotype runs from its tree, which comes first on Python's path.\n"
        f'PYTHONPATH={folder}"${{PYTHONPATH:+:$PYTHONPATH}}" exec {program} -P -m cli "$@"\n'
    )


if __name__ == "__main__":
    sys.stdout.write(command(Path(sys.executable), Path(__file__).resolve().parents[1]))
