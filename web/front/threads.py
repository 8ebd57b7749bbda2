"""Runs the WSGI application in a bounded number of threads, with a bounded queue.

While work only waits, it lends its place to other work. It knows nothing of HTTP.
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
    """Queued work: when it was queued, and how to refuse it; work on a started answer is never refused."""

    since: float
    work: Work
    refuse: Work | None


class Threads:
    """Starts threads on demand and keeps them; they are daemons, so that a hang does not block the exit."""

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
        """The number of pieces of work that run."""
        return self._num_running

    @property
    def num_queued(self) -> int:
        """The number of pieces of work that wait for a place."""
        return len(self._queued)

    @property
    def num_lent(self) -> int:
        """The number of pieces of work that wait for something else and have lent their place."""
        return self._num_lent

    def stuck_seconds(self) -> float:
        """How long all places have been busy while no work started or finished; 0 while one is free."""
        with self._lock:
            full = self._num_running >= self._limits.num_threads
            return self._clock() - self._moved_at if full else 0.0

    async def run(self, function: Callable[[], Result], *, begun: bool = False) -> Result:
        """Run the function in a thread and return its result. Raises `Busy`, or what the function raises.

        With `begun` it continues a started answer, and is queued regardless of the length of the queue.
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
        """Lend the place of the current thread to other work while the body runs.

        Afterwards the thread continues at once, so that for a moment more than `num_threads` may run.
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
                queued.refuse()  # its work would add to the time that its client has already waited
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
            if not loop.is_closed():  # the process is ending, and no request waits for this any more
                raise


def _succeed(future: "asyncio.Future[Result]", result: Result) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: "asyncio.Future[Result]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
