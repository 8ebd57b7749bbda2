"""Sends a trace in an open loop: each arrival when it is due, whether or not earlier ones have been answered.

A thread serves one arrival at a time, and as many are started as are needed. Nothing limits their number,
because a limit would delay requests and hide that the service is slow. An arrival that cannot be sent is an
outcome too. It does not know what becomes of an arrival.
"""

import math
import resource
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import SimpleQueue
from typing import Protocol

from bench.load.connection import Connection
from bench.load.outcomes import Outcome
from bench.load.trace import Arrival, Form, Trace

STACK_BYTES = 512 * 1024
"""Of each thread: thousands of the usual eight megabytes would be much address space."""
READY_THREADS = 16
"""Started before the run, so that its first arrivals are not late."""
GRACE_SECONDS = 90.0
"""How long threads may take beyond the end of a run for the answers that they still wait for. What has none
by then is lost; its thread ends with the process."""


class Timeline:
    """The clock of a run: seconds from its start, and how many are left until its end."""

    def __init__(
        self,
        end_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.end_seconds, self.sleep, self._clock = end_seconds, sleep, clock
        self._begun_at = clock()

    def begin(self) -> None:
        """Start now."""
        self._begun_at = self._clock()

    def now(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._begun_at

    def left(self) -> float:
        """Seconds until the end; 0 after it."""
        return max(0.0, self.end_seconds - self.now())


class Route(Protocol):
    """How a form of arrival is submitted and followed to its end."""

    def __call__(self, arrival: Arrival, connection: Connection, timeline: Timeline) -> list[Outcome]:
        """Submit the arrival now; return an outcome for each of its requests."""


def send(
    trace: Trace,
    routes: Mapping[Form, Route],
    connect: Callable[[], Connection],
    *,
    drain_seconds: float,
    grace_seconds: float = GRACE_SECONDS,
) -> list[Outcome]:
    """Send every arrival when it is due; return the outcomes in the order of the trace.

    What has not ended `drain_seconds` after the end of the trace is unfinished, and is canceled by its route.
    If the service does not answer even that within `grace_seconds`, it is lost. An interruption ends the run
    at once in the same way.
    """
    allow_many_connections()
    timeline = Timeline(trace.seconds + drain_seconds)
    found: list[list[Outcome]] = [[] for _ in trace.arrivals]
    sent = [arrival.due_seconds for arrival in trace.arrivals]

    def perform(number: int, connection: Connection) -> None:
        arrival, sent[number] = trace.arrivals[number], timeline.now()
        found[number] = routes[arrival.form](arrival, connection, timeline)

    threads = _Threads(perform, connect)
    try:
        threads.start(min(READY_THREADS, len(trace.arrivals)))
        timeline.begin()
        for number, arrival in enumerate(trace.arrivals):
            if (pause := arrival.due_seconds - timeline.now()) > 0:
                time.sleep(pause)
            if not threads.hand(number):
                found[number] = unsent(arrival, timeline.now())
        while not threads.are_idle() and timeline.left() > 0:
            time.sleep(0.05)
    except BaseException:
        timeline.end_seconds = -math.inf
        raise
    finally:
        threads.end(timeline.left() + grace_seconds)
    return [
        outcome
        for number, arrival in enumerate(trace.arrivals)
        for outcome in found[number] or hanging(arrival, sent[number])
    ]


def allow_many_connections() -> None:
    """Raise the number of files that this process may open to the most that the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # some systems tell a limit that they do not allow
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def unsent(arrival: Arrival, now: float) -> list[Outcome]:
    """The outcomes of an arrival for which no thread could be started."""
    return [
        Outcome(
            request,
            arrival.form,
            arrival.due_seconds,
            now,
            "unsent",
            ended_seconds=now,
            detail="no thread could be started",
        )
        for request in arrival.requests
    ]


def hanging(arrival: Arrival, sent_seconds: float) -> list[Outcome]:
    """The outcomes of an arrival that the service had not answered when nobody waited any longer."""
    return [
        Outcome(
            request, arrival.form, arrival.due_seconds, sent_seconds, "lost", detail="no answer by the end"
        )
        for request in arrival.requests
    ]


class _Threads:
    """Threads that each perform one arrival at a time, each with its own connection."""

    def __init__(self, perform: Callable[[int, Connection], None], connect: Callable[[], Connection]) -> None:
        self._perform, self._connect = perform, connect
        self._idle: list[SimpleQueue[int | None]] = []
        self._all: list[tuple[threading.Thread, SimpleQueue[int | None]]] = []
        self._error: BaseException | None = None

    def start(self, number: int) -> None:
        """Have this many threads wait for arrivals."""
        self._idle += [self._started() for _ in range(number)]

    def hand(self, number: int) -> bool:
        """Have an idle or a new thread perform the arrival; False if none can be started."""
        if self._error is not None:
            raise self._error
        try:
            inbox = self._idle.pop()
        except IndexError:
            try:
                inbox = self._started()
            except RuntimeError:
                return False
        inbox.put(number)
        return True

    def are_idle(self) -> bool:
        """Whether none performs an arrival; True too if one has failed."""
        return self._error is not None or len(self._idle) == len(self._all)

    def end(self, seconds: float) -> None:
        """Wait until all have done their work, but not longer; raises what a thread has raised."""
        deadline = time.monotonic() + seconds
        for _, inbox in self._all:
            inbox.put(None)
        for thread, _ in self._all:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._error is not None:
            raise self._error

    def _started(self) -> "SimpleQueue[int | None]":
        inbox: SimpleQueue[int | None] = SimpleQueue()
        usual = threading.stack_size(STACK_BYTES)
        try:
            thread = threading.Thread(target=self._serve, args=(inbox,), name="load", daemon=True)
            thread.start()
        finally:
            threading.stack_size(usual)
        self._all.append((thread, inbox))
        return inbox

    def _serve(self, inbox: "SimpleQueue[int | None]") -> None:
        connection = self._connect()
        try:
            while (number := inbox.get()) is not None:
                self._perform(number, connection)
                self._idle.append(inbox)
        except BaseException as error:
            self._error = self._error or error
        finally:
            connection.close()
