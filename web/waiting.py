"""Waits for jobs to end: one listener and one poller serve all requests that wait.

A notification ends a wait; the poll is the truth, for what no notification told (docs/adr/0027). A waiting
request holds no database connection; at most `max_waiters` may wait at once. It knows neither HTTP nor SQL:
it receives a function that reads states, and a future that is done once the client has disconnected.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Protocol

import structlog

from catalogue.states import TERMINAL, State

log = structlog.get_logger()

StatesOf = Callable[[Collection[str]], Mapping[str, State]]

GAP_SECONDS = 0.01
"""The time between two reads, so that requests that begin to wait together are read together."""


class Notifications(Protocol):
    """Whoever calls `Waiter.ended`, once it has been started."""

    @property
    def is_listening(self) -> bool:
        """Whether it hears of every end now."""

    def start(self) -> None:
        """Begin, if it has not; returns at once."""


class Waiter:
    """All waiting requests of one process. The poller starts with the first one and ends with the last.

    It reads the states of new waits at once, since a job may have ended before its wait began, and then all
    of them every `poll_seconds`: every `unheard_poll_seconds` while notifications do not come.
    """

    def __init__(
        self,
        states_of: StatesOf,
        notifications: Notifications,
        *,
        max_waiters: int,
        poll_seconds: float = 1,
        unheard_poll_seconds: float = 0.06,
        max_pause_seconds: float = 1,
        gap_seconds: float = GAP_SECONDS,
    ) -> None:
        self._states_of = states_of
        self._notifications = notifications
        self._max_waiters = max_waiters
        self._poll_seconds = poll_seconds
        self._unheard_poll_seconds = unheard_poll_seconds
        self._max_pause_seconds = max_pause_seconds
        self._gap_seconds = gap_seconds
        self._changed = threading.Condition()
        self._waiting: dict[str, list[threading.Event]] = {}
        self._num_waiters = 0
        self._unread: set[str] = set()
        """The jobs whose waits have begun since their states were last read."""
        self._is_all_unread = False
        """Whether the same holds for every job that is waited for."""
        self._hears = True
        """Whether a notification came since the poll found an end that none had told."""
        self._polled_at = 0.0
        """When the states of all of them were last read, on the monotonic clock."""
        self._poller: threading.Thread | None = None
        self._stopped = False

    @property
    def num_waiters(self) -> int:
        """The number of requests that wait."""
        return self._num_waiters

    def wait(self, job_id: str, seconds: float, hang_up: "Future[None] | None" = None) -> bool:
        """Wait until the job has ended, the time is up or `hang_up` is done.

        Returns `False` at once if too many requests wait already.
        """
        ended = threading.Event()
        self._notifications.start()
        with self._changed:
            if self._stopped or self._num_waiters >= self._max_waiters:
                return False
            self._waiting.setdefault(job_id, []).append(ended)
            self._num_waiters += 1
            self._unread.add(job_id)
            self._ensure_poller()
            self._changed.notify()
        if hang_up is not None:
            hang_up.add_done_callback(lambda _: ended.set())
        try:
            ended.wait(seconds)
        finally:
            with self._changed:
                self._forget(job_id, ended)
        return True

    def ended(self, job_ids: str) -> None:
        """End the waits for these jobs, whose ids are separated by spaces: they have ended."""
        with self._changed:
            self._hears = True
            for job_id in job_ids.split():
                self._let_go(job_id)

    def read_soon(self) -> None:
        """Read the states of all jobs that are waited for, since notifications may have been missed."""
        with self._changed:
            self._is_all_unread = True
            self._changed.notify()

    def stop(self) -> None:
        """End all waits, now and in the future, because the process is about to exit."""
        with self._changed:
            self._stopped = True
            for job_id in self._waiting:
                self._let_go(job_id)

    def _ensure_poller(self) -> None:
        # After a fork the parent's thread does not exist in the child, so the child starts its own.
        if self._poller is None or not self._poller.is_alive():
            self._polled_at = time.monotonic()
            self._poller = threading.Thread(target=self._poll, name="job-waiter", daemon=True)
            self._poller.start()

    def _poll(self) -> None:
        not_before = pause_seconds = 0.0
        while (due := self._next_read(not_before)) is not None:
            job_ids, is_poll = due
            try:
                states = self._states_of(job_ids)
            except Exception as error:  # if this thread ended, waits would last until their time is up
                pause_seconds = min(
                    max(2 * pause_seconds, self._unheard_poll_seconds), self._max_pause_seconds
                )
                not_before = time.monotonic() + pause_seconds
                log.warning("job_states_not_read", error=type(error).__name__)
                self.read_soon()
                continue
            self._release(states, is_poll=is_poll)
            pause_seconds, not_before = 0.0, time.monotonic() + self._gap_seconds

    def _next_read(self, not_before: float) -> tuple[list[str], bool] | None:
        """The jobs to read next, once it is time, and whether it is a poll; `None` if nobody waits."""
        with self._changed:
            while self._waiting:
                now, poll_at = time.monotonic(), max(not_before, self._polled_at + self._pace_seconds())
                at = not_before if self._unread or self._is_all_unread else poll_at
                if now < at:
                    self._changed.wait(at - now)
                    continue
                is_poll = not self._is_all_unread and now >= poll_at
                if is_poll or self._is_all_unread:
                    job_ids, self._polled_at = list(self._waiting), now
                else:
                    job_ids = list(self._unread)
                self._unread.clear()
                self._is_all_unread = False
                return job_ids, is_poll
            self._poller = None  # under the lock, so that the next waiting request starts another poller
            return None

    def _pace_seconds(self) -> float:
        is_heard = self._notifications.is_listening and self._hears
        return self._poll_seconds if is_heard else self._unheard_poll_seconds

    def _release(self, states: Mapping[str, State], *, is_poll: bool) -> None:
        with self._changed:
            for job_id, state in states.items():
                if state in TERMINAL and self._let_go(job_id) and is_poll:
                    self._hears = False

    def _let_go(self, job_id: str) -> bool:
        """End the waits for this job; whether there was one that had not ended."""
        events = [ended for ended in self._waiting.get(job_id, []) if not ended.is_set()]
        for ended in events:
            ended.set()
        return bool(events)

    def _forget(self, job_id: str, ended: threading.Event) -> None:
        self._num_waiters -= 1
        events = self._waiting[job_id]
        events.remove(ended)
        if not events:
            del self._waiting[job_id]
            self._unread.discard(job_id)
        if not self._waiting:
            self._changed.notify()  # the poller ends
