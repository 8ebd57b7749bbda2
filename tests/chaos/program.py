"""The programs under test, run in processes that are forked when torch and celery are imported already.

A worker is all of `tasks.worker` but its model, and the API all of `calotype api`. Each ends itself as its
`Crash` says. They are forked by a server that has imported what both need, so that one starts in a second.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.chaos.crashes import Crash, Crasher
from tests.chaos.hosts import enter

IMPORTS = ["tests.chaos.worker_program", "tests.chaos.api_program"]
_forks = multiprocessing.get_context("forkserver")
_PR_SET_PDEATHSIG = 1
_forks.set_forkserver_preload(IMPORTS)


@dataclass(frozen=True)
class Start:
    """What a program gets."""

    name: str
    environment: Mapping[str, str]
    folder: Path
    """Of its log and its ready file."""
    crash: Crash | None = None
    port: int = 0
    host: str = "127.0.0.1"
    """Where an API listens."""
    namespace: str = ""
    """The network namespace of its host; empty: that of the harness."""
    step_seconds: float = 0.005
    tiers: tuple[str, ...] = ()
    """Those of a worker; empty: all."""
    mutant: str = ""
    """The fault that is put into its code (`tests.chaos.mutants`), if any."""

    @property
    def log(self) -> Path:
        """Both of its outputs, and those of the processes with this name before it."""
        return self.folder / f"{self.name}.log"

    @property
    def crash_file(self) -> Path:
        """Written when its crash happens."""
        return self.folder / f"{self.name}.crashed"

    @property
    def ready_file(self) -> Path:
        """Written once it serves."""
        return self.folder / f"{self.name}.ready"


Program = Callable[[Start, Crasher], int]


def start(program: Program, what: Start) -> BaseProcess:
    """Start a program in a process of its own."""
    what.ready_file.unlink(missing_ok=True)
    what.crash_file.unlink(missing_ok=True)
    process = _forks.Process(target=_run, args=(program, what), name=what.name)
    process.start()
    return process


def _run(program: Program, what: Start) -> None:
    ctypes.CDLL(None).prctl(
        _PR_SET_PDEATHSIG, signal.SIGKILL
    )  # it ends with the forking server, which ends with the harness
    if what.namespace:
        enter(what.namespace)
    output = os.open(what.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.environ.clear()
    os.environ.update(what.environment)
    crasher = Crasher(what.crash, what.crash_file)
    crasher.arm()
    sys.exit(program(what, crasher))
