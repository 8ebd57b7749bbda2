"""Dispatching from a request: the broker never keeps the request for longer than a moment.

Messages are sent on a thread of its own. It owns how long a caller waits for that thread; what is sent and
what a failure means is `tasks.dispatch`'s. A message that was given up may still be sent, which does no
harm: a job that is dispatched twice is claimed once.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import structlog

from storage.dispatches import Dispatch
from tasks.dispatch import Dispatcher

log = structlog.get_logger()

MAX_WAIT_SECONDS = 0.25


class PromptDispatcher:
    """A `Dispatcher` whose callers wait `max_wait_seconds` at most, and not at all while it is stuck."""

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
        self._queue: queue.SimpleQueue[tuple[Sequence[Dispatch], Future[bool]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._busy_since: float | None = None
        self._num_given_up = 0

    @property
    def num_dispatched_now(self) -> int:
        """Messages that the broker took."""
        return self._dispatcher.num_dispatched_now

    @property
    def num_failed(self) -> int:
        """Messages that it did not take, or not in time."""
        return self._dispatcher.num_failed + self._num_given_up

    def dispatch(self, dispatches: Sequence[Dispatch]) -> bool:
        """Publish the bells; `False` when the broker has not taken them all in time. Raises nothing."""
        with self._lock:
            is_stuck = (
                self._busy_since is not None and self._clock() - self._busy_since > self._max_wait_seconds
            )
            if not is_stuck:
                sent: Future[bool] = Future()
                self._queue.put((dispatches, sent))
                # After a fork the parent's thread is not alive here.
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
                    self._thread.start()
        if not is_stuck:
            try:
                return sent.result(self._max_wait_seconds)
            except TimeoutError:
                sent.cancel()
        with self._lock:
            self._num_given_up += len(dispatches)
        log.warning("dispatch_given_up", count=len(dispatches))
        return False

    def _run(self) -> None:
        while True:
            dispatches, sent = self._queue.get()
            if not sent.set_running_or_notify_cancel():
                continue
            self._busy_since = self._clock()
            try:
                sent.set_result(self._dispatcher.dispatch(dispatches))
            except BaseException as error:
                sent.set_exception(error)
            finally:
                self._busy_since = None
