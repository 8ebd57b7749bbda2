"""The watchdog for the consumer: a worker sends pings to itself and expects to receive them.

Owns the clock: how long a ping that the broker accepted has not been received. It does not know how a ping
is sent or received, nor what happens to a worker whose consumer is stalled.
"""

import threading
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger()

EXIT_STALLED = 73

PINGS = 4
"""The number of pings in `watchdog_seconds`: one of them may be lost if the broker restarts."""

RECONNECT_SECONDS = 20.0
"""The additional time that a consumer may need once the broker accepts messages again: the end of a command
(5 s), a pause (2 s) and a connection attempt (3 s) of `tasks.app`, doubled for a busy machine."""


class ConsumerWatchdog:
    """A thread that pings until stopped.

    `ping` sends one over a connection of its own and returns whether the broker accepted it; `is_connected`
    returns whether the consumer is subscribed to its queues. `on_stalled` is called once, on this thread,
    when no ping was received for `watchdog_seconds`. The clock stops while the broker accepts no pings: a
    broker that is down does not make the consumer stalled.
    """

    def __init__(
        self,
        ping: Callable[[], bool],
        is_connected: Callable[[], bool],
        *,
        watchdog_seconds: float,
        on_stalled: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ping = ping
        self._is_connected = is_connected
        self._watchdog_seconds = watchdog_seconds
        self._on_stalled = on_stalled
        self._clock = clock
        self._was_connected = True
        self._silent_since: float | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="consumer-watchdog", daemon=True)

    def start(self) -> None:
        """Start the thread; call it once the consumer is subscribed to its queues."""
        self._thread.start()

    def stop(self) -> None:
        """Stop pinging; the consumer may stop receiving from now on."""
        self._stopping.set()

    def received(self) -> None:
        """Reset the clock: a ping was received, no matter which."""
        with self._lock:
            self._silent_since = None

    def turn(self) -> bool:
        """Ping once; returns whether the consumer is stalled."""
        sent_at, is_connected = self._clock(), self._is_connected()
        with self._lock:
            # Pings sent while it was disconnected can only be received from now on.
            if self._silent_since is None or (is_connected and not self._was_connected):
                self._silent_since = sent_at
            self._was_connected = is_connected
        is_accepted = self._ping()
        with self._lock:
            if not is_accepted:
                self._silent_since = None
            elif self._silent_since == sent_at:
                self._silent_since = self._clock()  # the time that sending took does not count
            if self._silent_since is None:
                return False
            silent_seconds = sent_at - self._silent_since
        return silent_seconds > self._watchdog_seconds + (0 if is_connected else RECONNECT_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(self._watchdog_seconds / PINGS):
            if self._is_stalled() and not self._stopping.is_set():
                log.error("consumer_stalled", seconds=self._watchdog_seconds, connected=self._is_connected())
                self._on_stalled()
                return

    def _is_stalled(self) -> bool:
        try:
            return self.turn()
        except Exception:
            # A ping that cannot be sent proves nothing about the consumer, and the next one may succeed.
            log.exception("ping_failed")
            return False
