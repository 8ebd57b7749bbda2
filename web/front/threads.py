"""The threads that run the WSGI application: so many at once, so many in the queue, and no more.

A piece of work that only waits lends its place to another for as long. It knows nothing of HTTP.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

from web.front.limits import Limits
from web.front.refusals import Busy

Result = TypeVar("Result")
Work = Callable[[], None]


@dataclass(frozen=True)
class _Queued:
    """Work in the queue, since when, and how to refuse it; what carries on an answer cannot be refused."""

    since: float
    work: Work
    refuse: Work | None


class Threads:
    """Started on demand and kept; daemons, so that one that hangs does not keep the process."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._queued: deque[_Queued] = deque()
        self._ready: SimpleQueue[Work] = SimpleQueue()
        self._num_running = 0
        self._num_idle = 0
        self._num_lent = 0
        self._moved_at = clock()

    @property
    def num_running(self) -> int:
        """Pieces of work that hold a place."""
        return self._num_running

    @property
    def num_queued(self) -> int:
        """Pieces of work that wait for a place."""
        return len(self._queued)

    @property
    def num_lent(self) -> int:
        """Pieces of work that wait for something else and have lent their place."""
        return self._num_lent

    def stuck_seconds(self) -> float:
        """How long all places have been taken while nothing began or ended; 0 while one is free."""
        with self._lock:
            full = self._num_running >= self._limits.num_threads
            return self._clock() - self._moved_at if full else 0.0

    async def run(self, function: Callable[[], Result], *, begun: bool = False) -> Result:
        """The function's result, from a thread; raises `Busy`, or what it raises.

        With `begun` it carries on an answer that has begun, and is queued however long the queue is.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def work() -> None:
            try:
                result = function()
            except BaseException as error:
                self._tell(loop, _fail, future, error)
            else:
                self._tell(loop, _succeed, future, result)

        def refuse() -> None:
            error = Busy(f"no thread was free within {self._limits.max_queue_seconds:g} s; try again")
            self._tell(loop, _fail, future, error)

        self._submit(work, None if begun else refuse)
        return await future

    @contextmanager
    def lent(self) -> Iterator[None]:
        """While the body runs, in one of these threads, another piece of work has its place.

        Afterwards it goes on at once, so that for a moment one more than `num_threads` may run.
        """
        with self._lock:
            self._num_lent += 1
            self._give_place_up()
        try:
            yield
        finally:
            with self._lock:
                self._num_lent -= 1
                self._num_running += 1
                self._moved_at = self._clock()

    def _submit(self, work: Work, refuse: Work | None) -> None:
        with self._lock:
            if self._num_running < self._limits.num_threads:
                self._num_running += 1
                self._hand_out(work)
            elif refuse is None or self._has_room():
                self._queued.append(_Queued(self._clock(), work, refuse))
            else:
                raise Busy("every thread is taken and the queue is full; try again")

    def _has_room(self) -> bool:
        # A burst of quick requests makes a long queue that is soon empty.
        is_quick = bool(self._queued) and self._clock() - self._queued[0].since < self._limits.quick_seconds
        limit = self._limits.max_quick_queued if is_quick else self._limits.max_queued
        return len(self._queued) < limit

    def _give_place_up(self) -> None:
        self._moved_at = self._clock()
        self._num_running -= 1
        while self._queued and self._num_running < self._limits.num_threads:
            queued = self._queued.popleft()
            seconds = self._clock() - queued.since
            if queued.refuse is not None and seconds > self._limits.max_queue_seconds:
                queued.refuse()  # its own work would come on top of what its client has waited
                continue
            self._num_running += 1
            self._hand_out(queued.work)

    def _hand_out(self, work: Work) -> None:
        self._moved_at = self._clock()
        self._ready.put(work)
        if self._num_idle:
            self._num_idle -= 1
        else:
            threading.Thread(target=self._serve, name="web", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._ready.get()()
            with self._lock:
                self._num_idle += 1
                self._give_place_up()

    @staticmethod
    def _tell(loop: asyncio.AbstractEventLoop, settle: Callable[..., None], *arguments: object) -> None:
        try:
            loop.call_soon_threadsafe(settle, *arguments)
        except RuntimeError:
            if not loop.is_closed():  # the process is ending, and nobody waits for this any more
                raise


def _succeed(future: "asyncio.Future[Result]", result: Result) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: "asyncio.Future[Result]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
