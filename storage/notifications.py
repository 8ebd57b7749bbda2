"""The channels on which Postgres notifies of committed changes, and the connection that listens to them.

A notification is a hint that saves a poll: those sent while the connection was down are lost, so each
subscriber is told after every connect that anything may have changed, and also looks at the rows from time to
time (docs/adr/0027). It does not know who subscribes.
"""

import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg2
import structlog
from psycopg2 import extensions
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from storage.connections import tls_options
from storage.database import Database
from storage.errors import StorageError, Unavailable

log = structlog.get_logger()

JOBS_ENDED = "calotype_ended"
"""Jobs reached a final state; the payload is their ids, separated by spaces."""
WEBHOOKS_DUE = "calotype_webhooks"
"""Webhook deliveries were created; without a payload."""
BULK_DUE = "calotype_bulk"
"""Bulk jobs became due; the payload is their tier."""
MAX_IDS = 200
"""Ids in one message: Postgres limits a payload to 8,000 bytes (NOTIFY), and an id has about 30."""

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 5.0
"""The time that one statement may take on the listening connection."""
CHECK_SECONDS = 10.0
"""A connection that is silent for this long is asked for an answer."""
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.1, 2.0
STOP_SECONDS = 1.0

Hear = Callable[[str], object]
Catch = Callable[[], object]


_ANNOUNCE = text(
    """SELECT set_config('synchronous_commit', 'off', true), pg_notify(channel, payload)
         FROM unnest(CAST(:channels AS text[]), CAST(:payloads AS text[])) AS messages(channel, payload)"""
)


def announce(db: Database, messages: Sequence[tuple[str, str]]) -> None:
    """Send these pairs of channel and payload to all listeners. Raises nothing: they are hints.

    It is a transaction of its own that does not wait for the disk, since transactions that notify take turns
    until they are on disk.
    """
    if not messages:
        return
    channels, payloads = zip(*messages, strict=True)
    try:
        db.execute(_ANNOUNCE, {"channels": list(channels), "payloads": list(payloads)})
    except (StorageError, SQLAlchemyError) as error:
        log.warning("not_announced", error=type(error).__name__)


def _nothing() -> None:
    return


class Listener:
    """Calls subscribers with the payloads of their channels, on a thread that `start` starts.

    Subscribe before the start. After a fork the child has no such thread until it calls `start` itself, so
    call it as late as the first need. A transaction-mode pooler between us and Postgres passes no
    notifications on, which cannot be seen from here.
    """

    def __init__(
        self,
        url: str,
        *,
        ca_file: Path | None = None,
        check_seconds: float = CHECK_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._url = url
        self._options = {
            "fallback_application_name": "calotype-listener",
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,  # ms
            **tls_options(url, ca_file),
        }
        self._check_seconds = check_seconds
        self._answer_seconds = answer_seconds
        self._hears: dict[str, Hear] = {}
        self._catches: list[Catch] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._wake: socket.socket | None = None
        self._is_listening = False

    @property
    def is_listening(self) -> bool:
        """Whether notifications arrive now, as far as this side can see."""
        return self._is_listening and self._thread is not None and self._thread.is_alive()

    def subscribe(self, channel: str, hear: Hear, *, catch_up: Catch = _nothing) -> None:
        """Call `hear` with each payload, and `catch_up` after each connect, when any may have been missed.

        Both run on the listener's thread: they must be quick. What they raise is logged.
        """
        self._hears[channel] = hear
        self._catches.append(catch_up)

    def start(self) -> None:
        """Begin to listen, if nobody has; returns at once."""
        if self._thread is not None and self._thread.is_alive():
            return
        with self._lock:
            # After a fork, the parent's thread does not run in the child; nor may they share a socket.
            if self._stopping.is_set() or (self._thread is not None and self._thread.is_alive()):
                return
            self._is_listening = False
            woken, self._wake = socket.socketpair()
            self._thread = threading.Thread(target=self._run, args=(woken,), name="listener", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Close the connection; no callback begins after that."""
        with self._lock:
            self._stopping.set()
            thread, wake = self._thread, self._wake
        if wake is not None:
            wake.close()
        if thread is not None and thread is not threading.current_thread():
            # It may hang in the resolver, which has no deadline; the thread is a daemon.
            thread.join(STOP_SECONDS)

    def _run(self, woken: socket.socket) -> None:
        pause_seconds, has_failed = FIRST_PAUSE_SECONDS, False
        with woken:
            while not self._stopping.is_set():
                link = _Link(woken)
                try:
                    link.open(self._url, self._options)
                    for channel in self._hears:
                        link.execute(f'LISTEN "{channel}"', self._answer_seconds)
                    if has_failed:
                        log.info("notifications_back")
                    pause_seconds, has_failed = FIRST_PAUSE_SECONDS, False
                    self._is_listening = True
                    for catch_up in self._catches:
                        _call(catch_up)
                    self._hear(link)
                except _Stopped:
                    return
                except (psycopg2.Error, Unavailable) as error:
                    if not has_failed:
                        has_failed = True
                        log.warning("notifications_lost", error=str(error).strip())
                except Exception:
                    # If this thread ended, nobody would start it again.
                    has_failed = True
                    log.exception("notifications_lost")
                finally:
                    self._is_listening = False
                    link.close()
                self._stopping.wait(pause_seconds)
                pause_seconds = min(pause_seconds * 2, MAX_PAUSE_SECONDS)

    def _hear(self, link: "_Link") -> None:
        while True:
            for channel, payload in link.received(self._check_seconds):
                if (hear := self._hears.get(channel)) is not None and not self._stopping.is_set():
                    _call(hear, payload)
            if link.is_silent:
                link.execute("SELECT 1", self._answer_seconds)


class _Stopped(Exception):
    """The listener must stop."""


class _Link:
    """One connection in libpq's asynchronous mode: no call waits without a deadline, or when told to stop."""

    def __init__(self, woken: socket.socket) -> None:
        self._woken = woken
        self._connection: Any = None
        self.is_silent = False
        """Whether the last wait brought nothing."""

    def open(self, url: str, options: dict[str, Any]) -> None:
        self._connection = psycopg2.connect(url, async_=True, **options)
        self._settle(CONNECT_SECONDS)

    def execute(self, statement: str, seconds: float) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            self._settle(seconds)

    def received(self, seconds: float) -> list[tuple[str, str]]:
        """The notifications that came; waits up to `seconds` for the first."""
        if not self._connection.notifies:
            self.is_silent = not self._wait(select.POLLIN, seconds)
            self._connection.poll()
        found = [(one.channel, one.payload) for one in self._connection.notifies]
        self._connection.notifies.clear()
        return found

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _settle(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (state := self._connection.poll()) != extensions.POLL_OK:
            wanted = select.POLLIN if state == extensions.POLL_READ else select.POLLOUT
            if not self._wait(wanted, end - time.monotonic()):
                raise Unavailable("the database did not answer in time")

    def _wait(self, wanted: int, seconds: float) -> bool:
        """Whether the connection became ready in time. Raises `_Stopped`."""
        poll = select.poll()  # `select.select` refuses descriptors above 1023
        woken, connection = self._woken.fileno(), self._connection.fileno()
        poll.register(woken, select.POLLIN)
        poll.register(connection, wanted)
        ready = [descriptor for descriptor, _ in poll.poll(max(0.0, seconds) * 1000)]
        if woken in ready:  # its other end was closed
            raise _Stopped
        return connection in ready


def _call(function: Callable[..., object], *arguments: object) -> None:
    try:
        function(*arguments)
    except Exception:
        # A bug in one subscriber must not end the thread of all.
        log.exception("notification_not_handled")
