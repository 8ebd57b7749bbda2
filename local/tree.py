"""How a process runs this tree's `calotype` command, from any folder and regardless of what is installed.

`-P` keeps the current folder off Python's path and `PYTHONPATH` puts the tree first, so that no other `cli`
or `settings` is imported.
"""

import os
import sys

from settings import ROOT

PROGRAM = (sys.executable, "-P", "-m", "cli")


def with_tree() -> dict[str, str]:
    """The environment of this process, with the tree first on Python's path."""
    others = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *([others] if others else [])])}
