"""How a worker process ends, and how the jobs of a process that died return to their queue.

Every way to end releases the jobs that the process holds. A drain waits for them; a lost device or a stalled
consumer ends the process. It does not know how the jobs are run.
"""

import os
import signal
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

import structlog
from tenacity import Retrying, retry_if_exception_type, wait_random_exponential

from engine.engine import Engine
from storage.database import Database
from storage.errors import StorageError, Unavailable
from storage.job_views import Outcome
from storage.jobs import Claim, Lease
from storage.workers import Worker, declare_dead
from tasks.consumer_watchdog import EXIT_STALLED
from tasks.device_record import DeviceRecord, dead_processes
from tasks.heartbeat import Heartbeat
from tasks.in_flight import LET_GO_SECONDS, InFlightJobs
from tasks.job_observers import JobObserver
from tasks.ready import ReadyFile

log = structlog.get_logger()

EXIT_DEVICE_LOST = 72


class TakesJobs(Protocol):
    """A thread that claims jobs by itself."""

    def leave(self) -> None:
        """Claim no more."""


def drain(
    engine: Engine,
    heartbeat: Heartbeat,
    takers: Sequence[TakesJobs],
    ready_file: ReadyFile,
    seconds: float,
) -> None:
    """Let running generations finish; those not finished after `seconds` are requeued without a charge."""
    for taker in takers:
        taker.leave()
    heartbeat.leave()  # this worker takes no more jobs, so estimates must not count on it
    ready_file.end()
    if not engine.drain(seconds):
        log.warning("drain_timed_out", seconds=seconds, generations=engine.num_generations)
    engine.stop()


class Stops:
    """What SIGTERM and SIGINT do to a worker; `release` gives leases back, uncharged.

    The first drains, so that running generations finish. The second ends the engine at its next step, and
    what it held goes back to the queue. From then on they do what the system does by default. The signal
    that a worker sends itself drains too, and is not counted: a supervisor's first one must not cut it short.
    """

    def __init__(
        self,
        drain: Callable[[], object],
        stop_engine: Callable[[], object],
        in_flight: InFlightJobs,
        release: Callable[[Sequence[Lease]], object],
        *,
        send_signal: Callable[[], object] = lambda: os.kill(os.getpid(), signal.SIGTERM),
    ) -> None:
        self._drain = drain
        self._stop_engine = stop_engine
        self._in_flight = in_flight
        self._release = release
        self._send_signal = send_signal
        self._num_signals = 0
        self._is_own_signal_due = False
        self._is_draining = False

    def end_itself(self) -> None:
        """Drain without being told to, by a signal of its own; called on any thread.

        Nothing happens if it drains: after a second signal, another one would end it with jobs held.
        """
        if self._is_draining:
            return
        self._is_own_signal_due = True
        self._send_signal()

    def signaled(self) -> None:
        """One of the signals came; called on the main thread, within its handler."""
        if self._is_own_signal_due:
            self._is_own_signal_due = False
        else:
            self._num_signals += 1
        if not self._is_draining:
            self._is_draining = True
            self._begin(self._drain)
        elif self._num_signals > 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            log.warning("drain_cut_short", jobs=len(self._in_flight.all()))
            self._begin(self._stop_engine)

    def _begin(self, stop_engine: Callable[[], object]) -> None:
        threading.Thread(target=self._end, args=(stop_engine,), name="stop", daemon=True).start()

    def _end(self, stop_engine: Callable[[], object]) -> None:
        stop_engine()
        let_go(self._in_flight, self._release)


def let_go(
    in_flight: InFlightJobs,
    release: Callable[[Sequence[Lease]], object],
    *,
    seconds: float = LET_GO_SECONDS,
    exit_process: Callable[[int], object] = os._exit,
) -> None:
    """After the engine has stopped: exit if jobs are still held after `seconds`, and release them first.

    They are uploading, or cannot be written because Postgres is away; then their leases run out. A stop must
    end before a supervisor sends SIGKILL, after which they would count as held by a process that crashed.
    """
    if in_flight.wait_until_empty(seconds):
        return  # the main thread ends the process
    leases = [one.lease for one in in_flight.all()]
    log.warning("jobs_let_go", count=len(leases))
    try:
        release(leases)
    except StorageError as error:
        log.warning("jobs_not_released", count=len(leases), error=str(error))
    finally:
        exit_process(0)


class Recycling(JobObserver):
    """Calls `end` once when a limit is passed; 0 is no limit. `memory_bytes` reads what the process holds."""

    def __init__(
        self,
        *,
        max_jobs: int,
        max_memory_bytes: int,
        end: Callable[[], object],
        memory_bytes: Callable[[], int] | None = None,
    ) -> None:
        self._max_jobs = max_jobs
        self._max_memory_bytes = max_memory_bytes
        self._end = end
        self._memory_bytes = memory_bytes or resident_bytes
        self._lock = threading.Lock()
        self._num_jobs = 0
        self._has_ended = False

    def settled(self, claim: Claim, outcome: Outcome) -> None:  # noqa: ARG002  # as every observer's
        """Count a job that this worker has had; called on the thread of the job."""
        with self._lock:
            self._num_jobs += 1
            is_over = 0 < self._max_jobs <= self._num_jobs
        if is_over:
            self._recycle(num_jobs=self._num_jobs, max_jobs=self._max_jobs)

    def look(self) -> None:
        """Compare the memory of the process with its limit."""
        if self._is_too_large():
            self._recycle(memory_bytes=self._memory_bytes(), max_memory_bytes=self._max_memory_bytes)

    def can_begin(self) -> bool:
        """Whether the process may take jobs: one that is too large before its first would end after each."""
        if self._is_too_large():
            log.error(
                "memory_limit_too_low",
                error="CALOTYPE_WORKER_MAX_MEMORY_BYTES is less than a worker without a job holds",
                memory_bytes=self._memory_bytes(),
                max_memory_bytes=self._max_memory_bytes,
            )
            return False
        return True

    def _is_too_large(self) -> bool:
        return 0 < self._max_memory_bytes < self._memory_bytes()

    def run(self, seconds: float, stop: threading.Event) -> None:
        """Look every so many seconds until `stop` is set."""
        while not stop.wait(seconds):
            self.look()

    def _recycle(self, **why: int) -> None:
        with self._lock:
            if self._has_ended:
                return
            self._has_ended = True
        log.info("worker_recycles", **why)
        self._end()


def resident_bytes() -> int:
    """The main memory that this process holds (proc_pid_statm(5)); 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def end_stalled(drain: Callable[[], None], in_flight: InFlightJobs, write_seconds: float) -> None:
    """End a process whose consumer receives no messages any more: drain, then exit with `EXIT_STALLED`."""
    try:
        drain()
        if not in_flight.wait_until_empty(write_seconds):
            log.warning("jobs_not_released", count=len(in_flight.all()))
    finally:
        os._exit(EXIT_STALLED)  # the main thread may never return


def end_when_fatal(
    engine: Engine,
    db: Database,
    worker: Worker,
    end_process: Callable[[int], object],
    *,
    on_device: Callable[[], Collection[str]] = lambda: (),
) -> None:
    """Wait until the engine loses its device, then release the jobs as a crash would, and exit.

    A lost device does not come back in the same process. `on_device` returns the ids of the jobs that were
    on the device; an empty result means that they are unknown.
    """
    engine.fatal.wait()
    log.error("device_lost", device=worker.device, error=str(engine.fatal_error))
    try:
        declare_dead(db, boot_id=worker.boot_id, on_device=on_device() or None)
    finally:
        end_process(EXIT_DEVICE_LOST)


def end_process(record: DeviceRecord | None, code: int) -> None:
    """Exit because of a fault. If nothing was on the device, any job may have caused it: drop the record."""
    if record is not None:
        record.withdraw_if_empty()
    os._exit(code)


def create_device_record(run_folder: Path | None, boot_id: str) -> DeviceRecord | None:
    """The record of this process. Without one the worker runs, but its death quarantines all of its jobs."""
    if run_folder is None:
        return None
    try:
        return DeviceRecord(run_folder, boot_id)
    except OSError as error:
        log.warning("device_record_not_created", folder=str(run_folder), error=str(error))
        return None


def reap_dead_processes(db: Database, run_folder: Path) -> None:
    """Release the jobs of processes that died on this machine, before their leases run out; closes `db`."""
    tries = Retrying(
        retry=retry_if_exception_type(Unavailable), wait=wait_random_exponential(multiplier=0.5, max=30)
    )

    def reap() -> None:
        with dead_processes(run_folder) as dead:
            for process in dead:
                reaped = declare_dead(db, boot_id=process.boot_id, on_device=process.on_device)
                if reaped:
                    log.warning("dead_process_reaped", boot_id=process.boot_id, count=len(reaped))

    try:
        tries(reap)
    except Exception:
        log.exception("dead_processes_not_reaped")
    finally:
        db.close()
