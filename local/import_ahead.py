"""Imports the modules of several services once, and forks a process for each, which waits for its command.

`local/standby.py` starts it. The processes that it forks become children of the supervisor, because this one
ends. It is given no secret: each process reads its environment from a pipe of its own, when its service
starts.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

_PR_SET_PDEATHSIG = 1
_FOLLOW_SECONDS = 30


def main(request: Mapping[str, Any]) -> list[str] | None:
    """Return the command of a service, in the process forked for it; in every other process it never returns.

    `request` has the pid of the `supervisor`, the descriptor `report`, the descriptors of `commands` by
    service, and `groups`. Each group has `modules`, which its `services` share, and for each service further
    modules. The modules of a group are imported in addition to those of the groups before it.
    """
    gc.disable()  # imported modules are no garbage, and a collection would write to pages that are shared
    for group in request["groups"]:
        _import(group["modules"])
        gc.freeze()
        for name, modules in group["services"].items():
            if _fork(request, name):
                _import(modules)
                return _stand_by(request, name)
        if group is not request["groups"][-1] and _fork(request, ""):
            continue  # in a new process, so that those forked so far lose their parent at once
        os._exit(0)
    return None


def _import(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)


def _fork(request: Mapping[str, Any], name: str) -> bool:
    """Fork; return whether this is the new process, whose parent is then the supervisor."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent, pid = os.getpid(), os.fork()
    if pid:
        with suppress(OSError):  # also done by the child: whoever comes first
            os.setpgid(pid, pid)
        return False
    with suppress(OSError):
        os.setpgid(0, 0)
    _report(request, "forked", name)
    deadline = time.monotonic() + _FOLLOW_SECONDS
    while os.getppid() == parent and time.monotonic() < deadline:
        time.sleep(0.002)  # until the parent has forked its last process
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != request["supervisor"]:
        os._exit(1)
    return True


def _report(request: Mapping[str, Any], what: str, name: str) -> None:
    os.write(request["report"], f"{what} {os.getpid()} {name}\n".encode())


def _stand_by(request: Mapping[str, Any], name: str) -> list[str]:
    """Wait for the command of this service, and take its environment, log and cores."""
    gc.freeze()
    for other, descriptor in request["commands"].items():
        if other != name:
            os.close(descriptor)
    _report(request, "ready", name)
    os.close(request["report"])
    with os.fdopen(request["commands"][name], encoding="utf-8") as pipe:
        text = pipe.read()
    if not text:
        os._exit(0)  # the service is not started this way
    order = json.loads(text)
    if order["cores"]:
        os.sched_setaffinity(0, order["cores"])
    # After the affinity, which the kernel leaves alone.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, order["orphan_signal"], 0, 0, 0)
    os.environ.clear()
    os.environ.update(order["environment"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    gc.enable()
    command: list[str] = order["command"]
    return command


if __name__ == "__main__":
    arguments = main(json.loads(sys.argv[1]))
    if arguments is not None:
        # As `python -m MODULE …` does.
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
