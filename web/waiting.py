"""Waits for jobs to end: one poller reads the states for all requests that wait.

A waiting request holds no database connection; at most `max_waiters` may wait at once. It knows neither HTTP
nor SQL: it receives a function that reads states, and a future that is done once the client has disconnected.
"""

import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future

import structlog

from catalogue.states import TERMINAL, State
from storage.errors import StorageError

log = structlog.get_logger()

StatesOf = Callable[[Collection[str]], Mapping[str, State]]


class Waiter:
    """All waiting requests of one process. The poller starts with the first one and ends with the last."""

    def __init__(
        self,
        states_of: StatesOf,
        *,
        max_waiters: int,
        poll_seconds: float = 0.06,
        max_pause_seconds: float = 1,
    ) -> None:
        self._states_of = states_of
        self._max_waiters = max_waiters
        self._poll_seconds = poll_seconds
        self._max_pause_seconds = max_pause_seconds
        self._lock = threading.Lock()
        self._waiting: dict[str, list[threading.Event]] = {}
        self._poller: threading.Thread | None = None
        self._stopped = False

    @property
    def num_waiters(self) -> int:
        """The number of requests that wait."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def wait(self, job_id: str, seconds: float, hang_up: "Future[None] | None" = None) -> bool:
        """Wait until the job has ended, the time is up or `hang_up` is done.

        Returns `False` at once if too many requests wait already.
        """
        ended = threading.Event()
        with self._lock:
            if self._stopped or sum(map(len, self._waiting.values())) >= self._max_waiters:
                return False
            self._waiting.setdefault(job_id, []).append(ended)
            self._ensure_poller()
        if hang_up is not None:
            hang_up.add_done_callback(lambda _: ended.set())
        try:
            ended.wait(seconds)
        finally:
            with self._lock:
                self._forget(job_id, ended)
        return True

    def stop(self) -> None:
        """End all waits, now and in the future, because the process is about to exit."""
        with self._lock:
            self._stopped = True
            for events in self._waiting.values():
                for ended in events:
                    ended.set()

    def _ensure_poller(self) -> None:
        # After a fork the parent's thread does not exist in the child, so the child starts its own.
        if self._poller is None or not self._poller.is_alive():
            self._poller = threading.Thread(target=self._poll, name="job-waiter", daemon=True)
            self._poller.start()

    def _poll(self) -> None:
        pause = threading.Event()  # never set: used as a sleep
        pause_seconds = self._poll_seconds
        while awaited := self._awaited():
            try:
                self._release(self._states_of(awaited))
                pause_seconds = self._poll_seconds
            except StorageError as error:
                pause_seconds = min(pause_seconds * 2, self._max_pause_seconds)
                log.warning("job_states_not_read", error=type(error).__name__)
            pause.wait(pause_seconds)

    def _awaited(self) -> list[str]:
        with self._lock:
            if not self._waiting:
                self._poller = None  # under the lock, so that the next waiting request starts another poller
            return list(self._waiting)

    def _release(self, states: Mapping[str, State]) -> None:
        with self._lock:
            for job_id, state in states.items():
                if state in TERMINAL:
                    for ended in self._waiting.get(job_id, []):
                        ended.set()

    def _forget(self, job_id: str, ended: threading.Event) -> None:
        events = self._waiting[job_id]
        events.remove(ended)
        if not events:
            del self._waiting[job_id]
