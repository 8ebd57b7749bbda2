"""The jobs that this process holds right now: their leases and their generations in the engine.

Task threads put jobs in and take them out; the heart reads them all at each beat. It decides nothing.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from storage.jobs import Lease


class Handle(Protocol):
    """What the holdings need of an engine's handle."""

    @property
    def progress(self) -> float:
        """Steps done, from 0 to 1."""

    def cancel(self) -> None:
        """Stop at the next step boundary."""


class InFlightJob:
    """One held job; `handles` are filled in once its generations are submitted."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.lost = False
        self._since = time.monotonic()
        self._canceled = False
        self._handles: Sequence[Handle] = ()
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """For how long it has been held."""
        return time.monotonic() - self._since

    @property
    def progress(self) -> float:
        """The mean progress of its generations."""
        return sum(handle.progress for handle in self._handles) / max(1, len(self._handles))

    def watch(self, handles: Sequence[Handle]) -> None:
        """Take the generations; a cancellation that came before them reaches them now."""
        with self._lock:
            self._handles = handles
            canceled = self._canceled
        if canceled:
            self.cancel()

    def cancel(self, *, lost: bool = False) -> None:
        """Stop every generation; `lost` when the lease is another's, so that nothing more is written."""
        with self._lock:
            self._canceled = True
            self.lost = self.lost or lost
            handles = self._handles
        for handle in handles:
            handle.cancel()


class InFlightJobs:
    """Every held job of the process, by id; safe to share between threads."""

    def __init__(self) -> None:
        self._held: dict[str, InFlightJob] = {}
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, lease: Lease) -> Iterator[InFlightJob]:
        """Hold a job while the block runs."""
        in_flight_job = InFlightJob(lease)
        with self._changed:
            self._held[lease.job_id] = in_flight_job
        try:
            yield in_flight_job
        finally:
            with self._changed:
                if self._held.get(lease.job_id) is in_flight_job:
                    del self._held[lease.job_id]
                self._changed.notify_all()

    def all(self) -> list[InFlightJob]:
        """What is held at this moment."""
        with self._changed:
            return list(self._held.values())

    def wait_until_empty(self, seconds: float) -> bool:
        """Wait for so long until nothing is held; whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held, seconds)
