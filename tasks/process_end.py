"""How a worker process ends, and how the jobs of a process that died return to their queue.

Every way to end releases the jobs that the process holds. A drain waits for them; a lost device or a stalled
consumer ends the process. It does not know how the jobs are run.
"""

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

import structlog
from tenacity import Retrying, retry_if_exception_type, wait_random_exponential

from engine.engine import Engine
from storage.database import Database
from storage.errors import Unavailable
from storage.workers import Worker, declare_dead
from tasks.consumer_watchdog import EXIT_STALLED
from tasks.device_record import DeviceRecord, dead_processes
from tasks.heartbeat import Heartbeat
from tasks.in_flight import InFlightJobs

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
    ready_file: Path | None,
    seconds: float,
) -> None:
    """Let running generations finish; those not finished after `seconds` are requeued without a charge."""
    for taker in takers:
        taker.leave()
    heartbeat.leave()  # this worker takes no more jobs, so estimates must not count on it
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)
    if not engine.drain(seconds):
        log.warning("drain_timed_out", seconds=seconds, generations=engine.num_generations)
    engine.stop()


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
