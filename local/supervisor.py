"""Starts services in order, restarts those that end, stops them in reverse order and leaves nothing behind.

It does not know what the child processes do. Everything happens in the thread that calls `run`, because the
kernel ends children with the thread that started them.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from local.errors import StartFailed
from local.log_rotation import MAX_BYTES, rotate_logs
from local.process import Process, tail
from local.standby import Standbys

_POLL_SECONDS, _LOG_SECONDS = 0.05, 1.0
_FIRST_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS, _HEALTHY_SECONDS = 0.2, 10.0, 30.0


@dataclass(frozen=True)
class Exit:
    """The end of one process of a service, and the environment that the process had."""

    name: str
    pid: int
    returncode: int
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Service:
    """A process to keep running. The callables are called again at every start."""

    name: str
    command: Callable[[], Sequence[str]]
    environment: Callable[[], Mapping[str, str]]
    cwd: Path
    stage: int = 0
    """A service starts once every service of a lower stage is ready, and stops before them."""
    ready: Callable[[], bool] = lambda: True
    before_start: Callable[[], None] = lambda: None
    on_exit: Callable[[Exit], None] | None = None
    """Called in a separate thread as soon as a process has ended."""
    user: tuple[int, int] | None = None
    cores: frozenset[int] | None = None
    start_seconds: float = 60
    stop_seconds: float = 10
    stop_signal: int = signal.SIGTERM
    orphan_signal: int = signal.SIGKILL
    """The signal that the kernel sends if the supervisor dies without stopping the process."""


@dataclass(frozen=True)
class Step:
    """An action that runs once, before the services of its stage start."""

    name: str
    run: Callable[[], None]
    stage: int


@dataclass
class _Child:
    """A service and its current process."""

    service: Service
    process: Process | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    is_ready: bool = False
    started_at: float = 0
    restart_at: float = 0
    backoff_seconds: float = _FIRST_BACKOFF_SECONDS
    stop_by: float = field(default=0)


class Supervisor:
    """Runs services until `stop` is called."""

    def __init__(
        self,
        services: Sequence[Service],
        say: Callable[[str], None],
        *,
        logs: Path,
        steps: Sequence[Step] = (),
        inherit: Sequence[int] = (),
        standbys: Standbys | None = None,
        on_change: Callable[[], None] = lambda: None,
        max_log_bytes: int = MAX_BYTES,
    ) -> None:
        self._children = [_Child(service) for service in services]
        self._steps, self._inherit, self._logs = steps, inherit, logs
        self._say, self._on_change = say, on_change
        self._standbys = standbys or Standbys()
        self._stopping, self._at_once, self.started = threading.Event(), threading.Event(), threading.Event()
        self._hooks: list[threading.Thread] = []
        self._max_log_bytes, self._logs_due_at = max_log_bytes, 0.0

    def run(self) -> None:
        """Start everything, supervise until `stop`, stop everything. Raises `StartFailed`."""
        try:
            self._start()
            if not self._stopping.is_set():
                self._on_change()
                self.started.set()
            while not self._stopping.wait(_POLL_SECONDS):
                self._supervise(self._children)
        finally:
            self._stop()

    def stop(self, *, at_once: bool = False) -> None:
        """Make `run` stop everything and return; `at_once` kills. Safe in a signal handler."""
        if at_once:
            self._at_once.set()
        self._stopping.set()

    @contextmanager
    def background(self) -> Iterator[None]:
        """Run in a separate thread; the body starts once every service is ready."""
        errors: list[BaseException] = []

        def run() -> None:
            try:
                self.run()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="supervisor")
        thread.start()
        try:
            while thread.is_alive() and not self.started.wait(_POLL_SECONDS):
                pass
            if not errors:
                yield
        finally:
            self.stop()
            try:
                thread.join()
            except KeyboardInterrupt:
                self.stop(at_once=True)
                thread.join()
        if errors:
            raise errors[0]

    def pid(self, name: str) -> int | None:
        """Return the current process id of that service, or None while it is down."""
        child = next(child for child in self._children if child.service.name == name)
        return child.process.pid if child.process else None

    def started_at(self, name: str) -> float | None:
        """Return when the current process of that service was started, in seconds since 1970."""
        child = next(child for child in self._children if child.service.name == name)
        return child.process.started_at if child.process else None

    def pids(self) -> dict[str, int]:
        """Return the process id of every running service."""
        return {child.service.name: child.process.pid for child in self._children if child.process}

    def log_file(self, name: str) -> Path:
        """Return the path of the log of a service."""
        return self._logs / f"{name}.log"

    def _start(self) -> None:
        stages = {child.service.stage for child in self._children} | {step.stage for step in self._steps}
        for stage in sorted(stages):
            for step in self._steps:
                if step.stage == stage and not self._stopping.is_set():
                    self._say(f"{step.name} …")
                    step.run()
            if self._stopping.is_set():
                return
            self._start_all([child for child in self._children if child.service.stage == stage])

    def _start_all(self, children: Sequence[_Child]) -> None:
        """Launch each of the services, once its modules are imported, and wait until all are ready."""
        running = [child for child in self._children if child.is_ready]
        waiting = list(children)
        while self._launch_imported(waiting) and not self._stopping.wait(_POLL_SECONDS):
            self._supervise(running)
            # Also check those that were ready: a program without a probe may end right after its start.
            for child in children:
                returncode = child.process.poll() if child.process else None
                if returncode is not None:
                    raise self._failed(child, f"ended {_ending(returncode)} at its start")
            for child in [child for child in waiting if child.process]:
                seconds = time.monotonic() - child.started_at
                if child.service.ready():
                    child.is_ready = True
                    waiting.remove(child)
                    self._say(f"{child.service.name} is ready ({seconds:.1f} s)")
                elif seconds > child.service.start_seconds:
                    raise self._failed(child, f"is not ready after {child.service.start_seconds:.0f} s")

    def _launch_imported(self, waiting: Sequence[_Child]) -> bool:
        """Launch the services whose modules are imported; return whether any service is not ready yet."""
        for child in waiting:
            if child.process is None and not self._standbys.is_pending(child.service.name):
                self._launch(child)
        return bool(waiting)

    def _supervise(self, children: Sequence[_Child]) -> None:
        now = time.monotonic()
        self._bound_logs(now)
        self._standbys.reap()
        for child in children:
            if child.process is None:
                if now >= child.restart_at:
                    self._launch(child)
                continue
            returncode = child.process.poll()
            if returncode is not None:
                self._lost(child, returncode)
            elif not child.is_ready:
                self._check_restarted(child, now)
            elif now - child.started_at > _HEALTHY_SECONDS:
                child.backoff_seconds = _FIRST_BACKOFF_SECONDS

    def _bound_logs(self, now: float) -> None:
        """Rotate the logs of the children, and our own if it is in the same folder."""
        if now >= self._logs_due_at:
            self._logs_due_at = now + _LOG_SECONDS
            rotate_logs(self._logs, max_bytes=self._max_log_bytes)

    def _check_restarted(self, child: _Child, now: float) -> None:
        service = child.service
        if service.ready():
            child.is_ready = True
            self._say(f"{service.name} is ready again ({now - child.started_at:.1f} s)")
            if self.started.is_set():
                self._on_change()
        elif now - child.started_at > service.start_seconds and child.process:
            self._say(f"{service.name} is not ready after {service.start_seconds:.0f} s: ending it")
            child.process.kill()

    def _lost(self, child: _Child, returncode: int) -> None:
        """Call `on_end` for a process that has ended by itself, and schedule its restart."""
        self._report_exit(child, returncode)
        child.restart_at = time.monotonic() + child.backoff_seconds
        log = self.log_file(child.service.name)
        self._say(
            f"{child.service.name} ended {_ending(returncode)}: restarting in {child.backoff_seconds:.1f} s "
            f"(its log: {log})"
        )
        child.backoff_seconds = min(2 * child.backoff_seconds, _MAX_BACKOFF_SECONDS)

    def _launch(self, child: _Child) -> None:
        service = child.service
        service.before_start()
        child.environment = service.environment()
        child.started_at, child.is_ready = time.monotonic(), False
        child.process = Process(
            service.command(),
            child.environment,
            cwd=service.cwd,
            log=self.log_file(service.name),
            user=service.user,
            cores=service.cores,
            orphan_signal=service.orphan_signal,
            inherit=self._inherit,
            standby=self._standbys.claim(service.name),
        )

    def _stop(self) -> None:
        self._standbys.close()
        for stage in sorted({child.service.stage for child in self._children}, reverse=True):
            children = [c for c in self._children if c.service.stage == stage and c.process]
            if children:
                self._say(f"stopping {', '.join(child.service.name for child in children)} …")
                self._stop_stage(children)
            # Before the next stage, because the callback after a worker's end needs the database.
            for hook in self._hooks:
                hook.join(timeout=5)

    def _stop_stage(self, children: Sequence[_Child]) -> None:
        now = time.monotonic()
        for child in children:
            if child.process:
                child.process.interrupt(child.service.stop_signal)
                child.stop_by = now + child.service.stop_seconds
        left = list(children)
        while left:
            for child in list(left):
                if child.process and child.process.poll() is None:
                    if not self._at_once.is_set() and time.monotonic() < child.stop_by:
                        continue
                    self._say(f"{child.service.name} did not end in time: killed")
                    child.process.kill()
                left.remove(child)
                self._report_exit(child, (child.process and child.process.poll()) or 0)
            if left:
                self._at_once.wait(_POLL_SECONDS)

    def _report_exit(self, child: _Child, returncode: int) -> None:
        process, child.process = child.process, None
        hook = child.service.on_exit
        if hook is None or process is None:
            return
        # In a thread, because it may wait for a database that this thread must restart.
        end = Exit(child.service.name, process.pid, returncode, child.environment)
        thread = threading.Thread(target=self._run_hook, args=(hook, end), daemon=True)
        thread.start()
        self._hooks = [hook for hook in self._hooks if hook.is_alive()] + [thread]

    def _run_hook(self, hook: Callable[[Exit], None], end: Exit) -> None:
        try:
            hook(end)
        except Exception as error:
            self._say(f"the callback after the end of {end.name} failed: {error}")

    def _failed(self, child: _Child, what: str) -> StartFailed:
        log = self.log_file(child.service.name)
        return StartFailed(f"{child.service.name} {what}; the end of its log {log}:\n{tail(log)}")


def _ending(returncode: int) -> str:
    return f"by {signal.Signals(-returncode).name}" if returncode < 0 else f"with code {returncode}"
