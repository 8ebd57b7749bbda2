"""Processes that have imported what a service imports, and wait for its command: the supervisor's side.

The services of `calotype up` import much of the same, so one process (`local/import_ahead.py`) imports it
once while the data services start, and is forked. This module owns the forked processes until a service takes
one. It does not know what a service is. On other systems than Linux there are none: services start as usual.
"""

import ctypes
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from local.process import AdoptedChild, Process
from settings import ROOT

LOG = "import"
"""The name of the log of imports that fail."""
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
_END_SECONDS = 10.0
_IMPORT_SECONDS = 120.0
"""After that long a service is started without its standby, whose imports seem to hang."""


@dataclass(frozen=True)
class ImportGroup:
    """Modules that some services share, and the further modules of each service by its name.

    A group also shares the modules of the groups before it, whose services are ready before it begins.
    """

    modules: tuple[str, ...] = ()
    services: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Standbys:
    """The processes in waiting; `close` ends those that no service has taken.

    `reap` must be called now and then, as long as any of them may end by itself.
    """

    def __init__(
        self,
        groups: Sequence[ImportGroup] = (),
        *,
        environment: Mapping[str, str] | None = None,
        logs: Path | None = None,
        inherit: Sequence[int] = (),
        say: Callable[[str], None] = lambda _: None,
        import_seconds: float = _IMPORT_SECONDS,
    ) -> None:
        """Start to import. `environment` must hold no secret, as all of the processes have it.

        After `import_seconds` a service is no longer pending, although its modules are not imported yet.
        """
        self._say, self._started_at, self._import_seconds = say, time.monotonic(), import_seconds
        self._names = [name for group in groups for name in group.services]
        self._commands: dict[str, int] = {}
        self._forked: dict[int, AdoptedChild] = {}
        self._ready: dict[str, AdoptedChild] = {}
        self._report, self._unread = -1, b""
        self._source: Process | None = None
        self._was_adopting = _adopts_orphans()
        if not self._names or logs is None or not _adopt_orphans(True):
            self._names = []
            return
        self._source = self._start(groups, environment or {}, logs, inherit)

    def is_pending(self, name: str) -> bool:
        """Whether the process for this service is still importing."""
        self._read_report()
        is_expected = self._report >= 0 and name in self._names and name not in self._ready
        return is_expected and time.monotonic() < self._started_at + self._import_seconds

    def claim(self, name: str) -> "Standby | None":
        """Return the process for this service, which is then the caller's; None if there is none any more."""
        self._read_report()
        child, pipe = self._ready.pop(name, None), self._commands.pop(name, None)
        self._names = [other for other in self._names if other != name]
        if child is None or pipe is None or child.poll() is not None:
            if pipe is not None:
                os.close(pipe)
            return None
        del self._forked[child.pid]
        return Standby(child, pipe)

    def reap(self) -> None:
        """Collect the end of each process that nobody has claimed: its imports may have failed too late."""
        self._read_report()
        for child in self._forked.values():
            child.poll()

    def close(self) -> None:
        """End every process that was not claimed, and wait for its end."""
        self._say = lambda _: None
        deadline = time.monotonic() + _END_SECONDS
        while self._report >= 0 and time.monotonic() < deadline:
            self._kill_all()
            self._read_report(0.05)
        self._kill_all()
        for child in self._forked.values():
            child.wait(max(0.0, deadline - time.monotonic()))
        self._forked.clear()
        self._ready.clear()
        for pipe in self._commands.values():
            os.close(pipe)
        self._commands.clear()
        self._end_report()

    def _start(
        self,
        groups: Sequence[ImportGroup],
        environment: Mapping[str, str],
        logs: Path,
        inherit: Sequence[int],
    ) -> Process:
        self._report, report = os.pipe()
        os.set_blocking(self._report, False)
        commands: dict[str, int] = {}
        for name in self._names:
            commands[name], self._commands[name] = os.pipe()
        request = {
            "supervisor": os.getpid(),
            "report": report,
            "commands": commands,
            "groups": [asdict(group) for group in groups],
        }
        given = (report, *commands.values())
        try:
            return Process(
                [sys.executable, "-m", "local.import_ahead", json.dumps(request)],
                environment,
                cwd=ROOT,
                log=logs / f"{LOG}.log",
                inherit=(*inherit, *given),
            )
        finally:
            for descriptor in given:
                os.close(descriptor)

    def _read_report(self, wait_seconds: float = 0) -> None:
        """Learn which processes were forked and are ready; its end means that no more will come."""
        if self._report < 0:
            return
        if self._source is not None:
            self._source.poll()  # so that no zombie stays
        if wait_seconds:
            with selectors.DefaultSelector() as selector:
                selector.register(self._report, selectors.EVENT_READ)
                selector.select(wait_seconds)
        while True:
            try:
                part = os.read(self._report, 65_536)
            except BlockingIOError:
                return
            if not part:
                self._end_report()
                self._say(f"modules are imported ({time.monotonic() - self._started_at:.1f} s)")
                return
            *lines, self._unread = (self._unread + part).split(b"\n")
            for line in lines:
                what, pid, name = line.decode().split(" ")
                child = self._forked.setdefault(int(pid), AdoptedChild(int(pid)))
                if what == "ready":
                    self._ready[name] = child

    def _end_report(self) -> None:
        if self._report >= 0:
            os.close(self._report)
            self._report = -1
        if self._source is not None:
            self._source.kill()
            self._source = None
            _adopt_orphans(self._was_adopting)
        for child in self._forked.values():
            child.poll()

    def _kill_all(self) -> None:
        if self._source is not None:
            self._source.kill()
        for child in self._forked.values():
            child.send_signal(signal.SIGKILL)


class Standby:
    """One process in waiting, which becomes one service."""

    def __init__(self, child: AdoptedChild, pipe: int) -> None:
        self._child, self._pipe = child, pipe

    def become(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        log: Path,
        cores: frozenset[int] | None,
        orphan_signal: int,
    ) -> AdoptedChild:
        """Run `python -m MODULE …` with that environment and log, in this process."""
        order = {
            "command": list(command[2:]),
            "environment": dict(environment),
            "log": str(log),
            "cores": sorted(cores or ()),
            "orphan_signal": int(orphan_signal),
        }
        # If it has died, the supervisor notices that as it does for any child.
        with suppress(BrokenPipeError), os.fdopen(self._pipe, "w", encoding="utf-8") as pipe:
            pipe.write(json.dumps(order))
        return self._child


def _adopt_orphans(wanted: bool) -> bool:
    """Whether processes whose parent ends become children of this process (prctl(2), Linux only)."""
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0) == 0)


def _adopts_orphans() -> bool:
    """Whether that is so already."""
    if sys.platform != "linux":
        return False
    found = ctypes.c_int()
    ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(found), 0, 0, 0)
    return bool(found.value)
