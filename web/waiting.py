"""Waiting for jobs to end without holding anything: one poller looks for all who wait.

A waiter holds a thread and no database connection; at most `max_waiters` may wait at once. It knows neither
HTTP nor SQL: it is handed a function that reads states, and a future that is done once nobody waits any more.
"""

import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future

import structlog

from storage.errors import StorageError
from storage.states import TERMINAL, State

log = structlog.get_logger()

StatesOf = Callable[[Collection[str]], Mapping[str, State]]


class Waiter:
    """All waiters of one process. Its poller starts with the first and ends with the last of them."""

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
        """How many threads wait now."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def wait(self, job_id: str, seconds: float, hang_up: "Future[None] | None" = None) -> bool:
        """Return when the job has ended, the time is over or `hang_up` is done.

        `False` at once when too many wait already.
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
        """Let everyone go, now and from now on: the process is about to end."""
        with self._lock:
            self._stopped = True
            for events in self._waiting.values():
                for ended in events:
                    ended.set()

    def _ensure_poller(self) -> None:
        # After a fork the parent's thread is not alive here, so the child starts its own.
        if self._poller is None or not self._poller.is_alive():
            self._poller = threading.Thread(target=self._poll, name="job-waiter", daemon=True)
            self._poller.start()

    def _poll(self) -> None:
        pause = threading.Event()  # never set: a sleep that tests need not patch
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
                self._poller = None  # under the lock: whoever comes next starts another
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
