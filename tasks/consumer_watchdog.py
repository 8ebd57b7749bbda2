"""The watchdog over the consumer: a worker sends itself pings and expects to hear them, as it does bells.

Owns the clock: how long a ping that the broker took has gone unheard. It does not know how a ping is sent or
heard, nor what becomes of a worker that is deaf.
"""

import threading
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger()

EXIT_DEAF = 73

PINGS = 4
"""In `watchdog_seconds`: one may be lost with the broker's memory."""

RECONNECT_SECONDS = 20.0
"""What a consumer may take besides, once the broker takes messages again: the end of a command (5 s), a pause
(2 s) and a try to connect (3 s) of `tasks.app`, twice that for a machine that is busy."""


class ConsumerWatchdog:
    """A thread that pings until told to stop.

    `ping` sends one over a connection of its own and says whether the broker took it; `is_connected` is
    whether the consumer has subscribed to its queues. `on_deaf` is called once, on this thread, when a ping
    has gone unheard for `watchdog_seconds`. While the broker takes none, the clock stands still: a broker
    that is away makes nobody deaf.
    """

    def __init__(
        self,
        ping: Callable[[], bool],
        is_connected: Callable[[], bool],
        *,
        watchdog_seconds: float,
        on_deaf: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ping = ping
        self._is_connected = is_connected
        self._watchdog_seconds = watchdog_seconds
        self._on_deaf = on_deaf
        self._clock = clock
        self._was_connected = True
        self._silent_since: float | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="consumer-watchdog", daemon=True)

    def start(self) -> None:
        """Begin, once the consumer hears its queues."""
        self._thread.start()

    def stop(self) -> None:
        """Ping no more: from now on nothing has to be heard."""
        self._stopping.set()

    def heard(self) -> None:
        """A ping has come back, whichever: the consumer is not deaf."""
        with self._lock:
            self._silent_since = None

    def turn(self) -> bool:
        """Ping once; whether the consumer is deaf."""
        sent_at, is_connected = self._clock(), self._is_connected()
        with self._lock:
            # What came while it was not connected it can only hear from now on.
            if self._silent_since is None or (is_connected and not self._was_connected):
                self._silent_since = sent_at
            self._was_connected = is_connected
        is_taken = self._ping()
        with self._lock:
            if not is_taken:
                self._silent_since = None
            elif self._silent_since == sent_at:
                self._silent_since = self._clock()  # what sending took is not the consumer's
            if self._silent_since is None:
                return False
            silent_seconds = sent_at - self._silent_since
        return silent_seconds > self._watchdog_seconds + (0 if is_connected else RECONNECT_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(self._watchdog_seconds / PINGS):
            if self._is_deaf() and not self._stopping.is_set():
                log.error("consumer_deaf", seconds=self._watchdog_seconds, connected=self._is_connected())
                self._on_deaf()
                return

    def _is_deaf(self) -> bool:
        try:
            return self.turn()
        except Exception:
            # A ping that cannot be sent says nothing of the consumer, and the next may go out.
            log.exception("ping_failed")
            return False
