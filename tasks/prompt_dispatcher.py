"""Dispatches from a request without waiting for a slow broker.

Owns the thread that sends the messages, and how long a caller waits for it; `tasks.dispatch` defines messages
and failures. A message may still be sent after its caller stopped waiting, which is harmless: a job that is
dispatched twice is claimed once.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import structlog

from storage.dispatches import Dispatch
from tasks.dispatch import Dispatcher

log = structlog.get_logger()

MAX_WAIT_SECONDS = 0.25
SHOW_SECONDS = 0.2
"""The dispatches of this time are shown to Flower in one message."""


class PromptDispatcher:
    """A `Dispatcher` whose callers wait at most `max_wait_seconds`, and not at all while it is stuck."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        max_wait_seconds: float = MAX_WAIT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dispatcher = dispatcher
        self._max_wait_seconds = max_wait_seconds
        self._clock = clock
        self._queue: queue.SimpleQueue[tuple[Sequence[Dispatch], Future[bool] | None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._busy_since: float | None = None
        self._num_given_up = 0

    @property
    def num_dispatched(self) -> int:
        """The number of messages that the broker accepted."""
        return self._dispatcher.num_dispatched

    @property
    def num_failed(self) -> int:
        """The number of messages that it did not accept in time."""
        return self._dispatcher.num_failed + self._num_given_up

    def dispatch(self, dispatches: Sequence[Dispatch]) -> bool:
        """Publish the dispatches; `False` if the broker did not accept them all in time. Raises nothing."""
        with self._lock:
            is_stuck = (
                self._busy_since is not None and self._clock() - self._busy_since > self._max_wait_seconds
            )
            if not is_stuck:
                sent: Future[bool] = Future()
                self._queue.put((dispatches, sent))
                # After a fork, the parent's thread does not run in the child.
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
                    self._thread.start()
        if not is_stuck:
            try:
                return sent.result(self._max_wait_seconds)
            except TimeoutError:
                sent.cancel()
            except Exception:  # the job is committed: its client must get its id
                log.exception("dispatch_failed")
                return self._give_up(dispatches)
        log.warning("dispatch_timed_out", count=len(dispatches))
        return self._give_up(dispatches)

    def _give_up(self, dispatches: Sequence[Dispatch]) -> bool:
        with self._lock:
            self._num_given_up += len(dispatches)
        return False

    def _run(self) -> None:
        show_at = math.inf
        while True:
            try:
                dispatches, sent = self._queue.get(timeout=self._seconds_until(show_at))
            except queue.Empty:
                dispatches, sent = (), None
            self._busy_since = self._clock()
            try:
                if sent is not None and sent.set_running_or_notify_cancel():
                    show_at = min(show_at, self._clock() + SHOW_SECONDS)
                    _settle(sent, partial(self._dispatcher.dispatch, dispatches))
                if self._clock() >= show_at:
                    show_at = math.inf
                    self._dispatcher.show()
            finally:
                self._busy_since = None

    def _seconds_until(self, moment: float) -> float | None:
        return None if moment == math.inf else max(0.0, moment - self._clock())


def _settle(future: "Future[bool]", function: Callable[[], bool]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
