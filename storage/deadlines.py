"""Deadlines for calls into libraries that have none, or none for the whole call.

Owns two ways to end a wait: `SocketDeadlines` shuts down the socket under a call that blocks in C, and
`BoundedCalls` runs a call on a separate thread and stops waiting for it. It does not know what is called.
"""

import math
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")

REMIND_SECONDS = 3.0
IDLE_SECONDS = 10.0


class SocketHandle:
    """A duplicated descriptor of a socket that a library owns and may close at any time.

    The library's descriptor may soon be reused for another socket; this one is valid until `close`.
    """

    def __init__(self, fileno: int) -> None:
        self._fileno = os.dup(fileno)
        self._lock = threading.Lock()

    def shut(self) -> None:
        """Shut the connection down for every holder of the socket."""
        with self._lock:
            if self._fileno < 0:
                return
            held = socket.socket(fileno=self._fileno)
            try:
                held.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # the other side ended it already
            finally:
                held.detach()

    def close(self) -> None:
        """Close the descriptor."""
        with self._lock:
            fileno, self._fileno = self._fileno, -1
        if fileno >= 0:
            os.close(fileno)

    def __del__(self) -> None:
        self.close()


class Deadline:
    """The deadline of one operation; `is_over` once it has passed and its socket, if any, was shut down."""

    def __init__(self, at: float, owner: object = None, remind: Callable[[], None] | None = None) -> None:
        self.at = at
        self.owner = owner
        self.remind = remind
        self.remind_at = math.inf
        self.is_over = False
        self.socket: SocketHandle | None = None


class SocketDeadlines:
    """Shuts down the sockets of operations that miss their deadline, on one thread that starts on demand.

    A shut socket ends a blocked `recv`, `send` or `poll` at once, in any library and in any state of TLS.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, remind_seconds: float = REMIND_SECONDS
    ) -> None:
        self._clock = clock
        self._remind_seconds = remind_seconds
        self._armed: set[Deadline] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wakes_at = math.inf  # when the thread looks at the deadlines next

    def arm(
        self, seconds: float, owner: object = None, *, remind: Callable[[], None] | None = None
    ) -> Deadline:
        """Start a deadline in `seconds`, without a socket yet. End it with `disarm`.

        Until then `remind` is called every `remind_seconds` on the deadlines' thread; it must not block.
        """
        now = self._clock()
        deadline = Deadline(now + seconds, owner, remind)
        if remind is not None:
            deadline.remind_at = now + self._remind_seconds
        with self._changed:
            self._armed.add(deadline)
            # After a fork, the parent's thread does not run in the child.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="socket-deadlines", daemon=True)
                self._wakes_at = math.inf
                self._thread.start()
            # Nearly every deadline is later than that of an earlier transaction, and wakes nobody.
            if min(deadline.at, deadline.remind_at) < self._wakes_at:
                self._changed.notify()
        return deadline

    def bind(self, deadline: Deadline, bound: SocketHandle) -> None:
        """Shut this socket down when the deadline passes; at once if it already has."""
        with self._changed:
            deadline.socket = bound
            if deadline.is_over:
                bound.shut()

    def end_all(self, owner: object) -> None:
        """End all deadlines of this owner now."""
        with self._changed:
            for deadline in self._armed:
                if deadline.owner is owner:
                    deadline.at = self._clock()
            self._changed.notify()

    def disarm(self, deadline: Deadline) -> None:
        """Remove the deadline: the operation has ended and its socket stays open."""
        with self._changed:
            self._armed.discard(deadline)

    def _run(self) -> None:
        with self._changed:
            while self._armed:
                now = self._clock()
                for deadline in [one for one in self._armed if one.at <= now]:
                    deadline.is_over = True
                    self._armed.discard(deadline)
                    if deadline.socket is not None:
                        deadline.socket.shut()
                for deadline in [one for one in self._armed if one.remind_at <= now]:
                    deadline.remind_at = now + self._remind_seconds
                    if deadline.remind is not None:
                        deadline.remind()
                if self._armed:
                    self._wakes_at = min(min(one.at, one.remind_at) for one in self._armed)
                    self._changed.wait(self._wakes_at - now)
            self._thread = None  # under the lock: the next `arm` starts another


class BoundedCalls:
    """Runs calls on separate threads, at most `max_calls` at once, including calls that timed out.

    A thread waits `idle_seconds` for another call before it ends.
    """

    def __init__(self, max_calls: int, name: str, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._free = threading.BoundedSemaphore(max_calls)
        self._name = name
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._num_idle = 0  # threads that wait for a call that nobody has given them yet
        self._given: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._pid = os.getpid()

    def call(
        self,
        function: Callable[[], Result],
        seconds: float,
        *,
        on_late: Callable[[Result], object] | None = None,
    ) -> Result:
        """Return or raise what `function` does; raises `TimeoutError` if it takes longer than `seconds`.

        A call that timed out runs on until it ends by itself; `on_late` gets its result then.
        """
        end = time.monotonic() + seconds
        if not self._free.acquire(timeout=seconds):
            raise TimeoutError(f"all threads of {self._name} are waiting for an answer")
        outcome: Future[Result] = Future()
        lock, is_late = threading.Lock(), False

        def run() -> None:
            try:
                result = function()
            except BaseException as error:
                outcome.set_exception(error)
            else:
                with lock:
                    outcome.set_result(result)
                    late = is_late
                if late and on_late is not None:
                    on_late(result)
            finally:
                self._free.release()

        try:
            self._give(run)
        except RuntimeError:  # no thread can be started
            self._free.release()
            raise
        try:
            return outcome.result(max(0.0, end - time.monotonic()))
        except TimeoutError:
            with lock:
                # It may have ended just now; a `TimeoutError` that it raised itself is passed on too.
                if outcome.done():
                    return outcome.result()
                is_late = True
            raise TimeoutError(f"no answer within {seconds:g} seconds") from None

    def _give(self, run: Callable[[], None]) -> None:
        """Run it on an idle thread, or on a new one."""
        with self._lock:
            if self._pid != os.getpid():  # after a fork, the parent's threads do not run in the child
                self._pid, self._num_idle, self._given = os.getpid(), 0, queue.SimpleQueue()
            if self._num_idle:
                self._num_idle -= 1
                self._given.put(run)
                return
        threading.Thread(target=self._run_all, args=(run,), name=self._name, daemon=True).start()

    def _run_all(self, run: Callable[[], None] | None) -> None:
        while run is not None:
            run()
            del run  # it refers to its result
            run = self._next()

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            self._num_idle += 1
        try:
            return self._given.get(timeout=self._idle_seconds)
        except queue.Empty:
            with self._lock:
                try:
                    return self._given.get_nowait()  # given while this thread stopped waiting
                except queue.Empty:
                    self._num_idle -= 1
                    return None
