"""The system that is measured: what `calotype up` runs, the processes beside it, and the CPU seconds of each.

It knows processes and addresses. It knows neither the load nor the figures.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.configuration import ROOT, write_configuration
from local.endpoints import addresses, base_environment
from local.process import Process, tail
from local.roles import Role
from local.state import State
from local.up import running
from storage.database import Database

Spent = Mapping[str, float]
"""CPU seconds by name of process: `web`, `postgres`, `valkey`, `s3`, `sweep`, `worker-cpu0` and more."""
SUPERVISOR = "supervisor"
START_SECONDS, STOP_SECONDS = 600.0, 20.0
MAX_ERRORS = 3
"""The errors of each process that are shown if a benchmark fails."""
PROFILES = ROOT / "build" / "bench-plane" / "profiles"
"""Kept between runs, so that a worker tests itself once on this machine."""


@dataclass(frozen=True)
class _Starting:
    """A process that is not ready yet: it writes the ready file once it is."""

    process: Process
    ready_file: Path
    log: Path


@dataclass
class Plane:
    """A running system; `pids` also has the processes that a benchmark started beside it."""

    ready: Mapping[str, Any]
    folder: Path
    overrides: Mapping[str, str]
    pids: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for process in (*self.ready["services"], *self.ready["workers"]):
            self.pids[process["name"]] = int(process["pid"])
        self.url, self.api_key = str(self.ready["url"]), str(self.ready["api_key"])
        self._endpoints = addresses(State.read(self.folder / "data"))
        self._db = Database(self.ready["database_url"], 2)
        self._starting: dict[str, _Starting] = {}

    @property
    def workers(self) -> list[str]:
        """The names of the workers that `calotype up` started."""
        return [str(worker["name"]) for worker in self.ready["workers"]]

    def cpu(self) -> dict[str, float]:
        """CPU seconds of every process so far, with its children, and of the supervisor's thread."""
        return {
            SUPERVISOR: _supervisor_seconds(),
            **{name: seconds_of(pid) for name, pid in self.pids.items()},
        }

    def rows(self, statement: str, *parameters: Any) -> list[Any]:
        """Read or change rows as the owner of the tables."""
        with self._db.transaction(seconds=60) as connection:
            result = connection.exec_driver_sql(statement, parameters)
            return list(result) if result.returns_rows else []

    def now(self) -> float:
        """The database's clock, in seconds since 1970."""
        [(seconds,)] = self.rows("SELECT extract(epoch FROM clock_timestamp())::float8")
        return float(seconds)

    @contextmanager
    def beside(
        self,
        name: str,
        module: str,
        *arguments: str,
        role: Role = "worker",
        settings: Mapping[str, str] | None = None,
    ) -> Iterator[int]:
        """Run `python -m MODULE --ready-file FILE …` with the credentials of a role; yield its process id.

        Several start at once: `wait_until_ready` waits for all.
        """
        ready_file, log = self.folder / f"{name}.ready", self.folder / f"{name}.log"
        ready_file.unlink(missing_ok=True)
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment = {
            **base_environment(),
            **self.overrides,
            **threads,
            **self._endpoints.environment_of(role),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            **(settings or {}),
        }
        command = [sys.executable, "-m", module, "--ready-file", str(ready_file), *arguments]
        process = Process(command, environment, cwd=ROOT, log=log)
        self.pids[name] = process.pid
        self._starting[name] = _Starting(process, ready_file, log)
        try:
            yield process.pid
        finally:
            self.pids.pop(name)
            self._starting.pop(name, None)
            process.interrupt(signal.SIGCONT)
            process.interrupt(signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            process.kill()

    def wait_until_ready(self) -> None:
        """Wait for all that `beside` has started; raises `RuntimeError` if one ends or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while self._starting:
            for name, one in list(self._starting.items()):
                if one.ready_file.exists():
                    del self._starting[name]
                elif one.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{name} does not start:\n{tail(one.log, 30)}")
            time.sleep(0.05)

    def close(self) -> None:
        """Close the connections to the database."""
        self._db.close()


@contextmanager
def plane_system(
    folder: Path,
    *,
    devices: Sequence[str] = ("cpu:0", "cpu:1"),
    overrides: Mapping[str, str] | None = None,
    max_rows: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Plane]:
    """Run everything while the body runs, with the shipped model and one worker for each device.

    `max_rows` replaces the cap of step batches.
    """
    config = write_configuration(folder, devices, max_rows=max_rows)
    settings = {
        "CALOTYPE_CONFIG": str(config),
        "CALOTYPE_PROFILES_DIR": str(PROFILES),
        **(overrides or {}),
    }
    with running(folder / "data", say=say, overrides=settings) as ready:
        plane = Plane(ready, folder, settings)
        try:
            yield plane
        except Exception as error:
            for line in _errors_in(folder / "data" / "logs"):
                error.add_note(line)  # the folder is about to be removed
            raise
        finally:
            plane.close()


def _errors_in(logs: Path) -> Iterator[str]:
    """The last lines of each log that report an error."""
    for log in sorted(logs.glob("*.log")):
        errors = [
            line for line in log.read_text("utf-8", "replace").splitlines() if '"level": "error"' in line
        ]
        yield from (f"{log.name}: {line[:4000]}" for line in errors[-MAX_ERRORS:])


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process that this benchmark started while the body runs, so that work waits for it."""
    process = psutil.Process(pid)
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def spent(before: Spent, after: Spent) -> dict[str, float]:
    """Return the CPU seconds between two readings of `Plane.cpu`."""
    return {name: after[name] - seconds for name, seconds in before.items() if name in after}


def seconds_of(pid: int) -> float:
    """Return the CPU seconds of a process and of its children, including those that have ended."""
    process, total = psutil.Process(pid), 0.0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def thread_seconds(pid: int) -> dict[int, float]:
    """Return the CPU seconds of each thread of a process."""
    return {one.id: one.user_time + one.system_time for one in psutil.Process(pid).threads()}


def busiest(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Return the CPU seconds of the thread that took most between two readings: of a worker, its engine's."""
    return max(seconds - before.get(thread, 0.0) for thread, seconds in after.items())


def _supervisor_seconds() -> float:
    ids = {one.native_id for one in threading.enumerate() if one.name == SUPERVISOR}
    own = psutil.Process().threads()
    return sum(one.user_time + one.system_time for one in own if one.id in ids)
