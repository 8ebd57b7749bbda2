"""The thread of a worker that writes how far its jobs are: one statement for all, twice a second at most.

Owns which jobs have moved since they were last written. Progress is for people: what cannot be written at
once is dropped, since the next turn and every heartbeat bring what is true by then.
"""

import threading
from collections.abc import Callable, Sequence

import structlog

from storage.errors import StorageError
from storage.jobs import Lease
from tasks.in_flight import InFlightJobs

log = structlog.get_logger()

PAUSE_SECONDS = 0.5
"""Between the end of one write and the next: at most two writes a second, whatever number of jobs is held."""


class ProgressWriter:
    """Calls `write` with the leases of jobs that have moved, each with its progress (0-1)."""

    def __init__(
        self,
        in_flight: InFlightJobs,
        write: Callable[[Sequence[tuple[Lease, float]]], object],
        *,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self._in_flight = in_flight
        self._write = write
        self._pause_seconds = pause_seconds
        self._written: dict[Lease, float] = {}
        self._is_failing = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Write no more; nobody waits for a write that hangs."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(self._pause_seconds):
            try:
                self.turn()
            except Exception:
                # The jobs themselves need none of this.
                log.exception("progress_not_written")

    def turn(self) -> None:
        """Write what has moved since the last turn, in one statement; nothing if nothing has."""
        held = [(in_flight_job.lease, in_flight_job.progress) for in_flight_job in self._in_flight.all()]
        moved = [(lease, progress) for lease, progress in held if progress > self._written.get(lease, 0.0)]
        if not moved:
            return
        # Noted before it is written: what is lost is not tried again, until the job moves on.
        self._written = dict(held)
        try:
            self._write(moved)
        except StorageError as error:
            if not self._is_failing:
                log.warning("progress_not_written", error=str(error))
            self._is_failing = True
        else:
            self._is_failing = False
