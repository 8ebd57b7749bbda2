"""Prints the command that `make install` writes to `.venv/bin/calotype`: this interpreter runs this tree.

The tree's folder is first on Python's path, so that Python does not import a `models` or `settings` of
another distribution or of the current folder. It imports only the standard library.
"""

import shlex
import sys
from pathlib import Path


def command(python: Path, tree: Path) -> str:
    """The three lines of the script."""
    program, folder = shlex.quote(str(python)), shlex.quote(str(tree))
    return (
        "#!/bin/sh\n"
        "# Made by `make install`: calotype runs from its tree, which comes first on Python's path.\n"
        f'PYTHONPATH={folder}"${{PYTHONPATH:+:$PYTHONPATH}}" exec {program} -P -m cli "$@"\n'
    )


if __name__ == "__main__":
    sys.stdout.write(command(Path(sys.executable), Path(__file__).resolve().parents[1]))
