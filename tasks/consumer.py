"""Celery's side of a worker: it receives messages, and stops consuming a lane whose slots are all taken.

Owns the Celery worker of this process, its signals and its slots. It knows neither rows nor the engine: it
passes a job id to `answer`, and reports the end of the process to `on_shutdown`.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery import Celery, signals

from tasks.pings import Pings
from tasks.queues import GENERATE, lane_of, queues_of
from tasks.task_events import SilentRequest


def _ignore(_lane: str) -> None:
    return


class Slots:
    """Counts the jobs of each lane that a worker holds at once; safe to share between threads.

    A slot is taken when a message is received, on Celery's loop, so that a full lane stops being consumed
    before its next message arrives. Bulk jobs never take interactive slots.
    """

    def __init__(
        self,
        limits: Mapping[str, int],
        *,
        on_full: Callable[[str], None] = _ignore,
        on_free: Callable[[str], None] = _ignore,
    ) -> None:
        self._limits = dict(limits)
        self._taken = dict.fromkeys(limits, 0)
        self._lock = threading.Lock()
        self._on_full = on_full
        self._on_free = on_free

    def take(self, lane: str) -> None:
        """Take a slot; calls `on_full` if it was the last one."""
        with self._lock:
            self._taken[lane] += 1
            if self._taken[lane] == self._limits[lane]:
                self._on_full(lane)

    def give_back(self, lane: str) -> None:
        """Release a slot; calls `on_free` if the lane was full."""
        with self._lock:
            self._taken[lane] -= 1
            if self._taken[lane] == self._limits[lane] - 1:
                self._on_free(lane)

    def taken(self, lane: str) -> int:
        """The number of slots of this lane that are in use."""
        with self._lock:
            return self._taken[lane]


class Consumer:
    """Consumes the queues of `tiers`, with `slots` jobs per lane at a time, and the queue of `pings`."""

    def __init__(self, app: Celery, tiers: Sequence[str], slots: Mapping[str, int], pings: Pings) -> None:
        self._app = app
        self._queues = queues_of(tiers)
        self._pings = pings
        self._num_threads = sum(slots.values()) + 1  # a ping takes no slot
        self._slots = Slots(slots, on_full=self._pause, on_free=self._resume)
        self._paused: set[str] = set()
        self._lock = threading.Lock()
        self._taken: defaultdict[str, list[str]] = defaultdict(list)
        """The lanes of the slots that each task took; a job that was dispatched twice takes two."""
        self._celery_consumer: Any = None

    def run(
        self,
        name: str,
        answer: Callable[[str], None],
        *,
        on_ready: Callable[[], None],
        on_shutdown: Callable[[], None],
    ) -> int:
        """Call `answer` on a thread for each message until SIGTERM; returns the exit code.

        `answer` must not raise.
        """

        def task(self_: Any, *arguments: Any, **_: Any) -> None:
            # Accepts any arguments, since a forged message must release its slot too. The second one, the
            # dispatch sequence, is for people to read: the claim ignores it.
            try:
                if arguments and isinstance(arguments[0], str):
                    answer(arguments[0])
            finally:
                self._give_back(self_.request.id)

        def ready(sender: Any, **_: Any) -> None:
            self._celery_consumer = sender
            on_ready()

        def received(request: Any, **_: Any) -> None:
            # Runs on Celery's loop before it asks for the next message, so a full lane is paused in time.
            # We send no ETA. Celery may refuse a message with one, and sends no signal if it does.
            if self._pings.is_one(request):
                return
            if request.eta is None:
                lane = lane_of(request.delivery_info["routing_key"])
                with self._lock:
                    self._taken[request.id].append(lane)
                self._slots.take(lane)

        def revoked(request: Any, **_: Any) -> None:
            self._give_back(request.id)

        def shutting_down(**_: Any) -> None:
            on_shutdown()

        self._app.task(name=GENERATE, bind=True, Request=SilentRequest)(task)
        signals.setup_logging.connect(_keep_logging, weak=False)
        signals.worker_ready.connect(ready, weak=False)
        signals.task_revoked.connect(revoked, weak=False)
        signals.task_received.connect(received, weak=False)
        signals.worker_shutting_down.connect(shutting_down, weak=False)
        worker = self._app.Worker(
            hostname=name,
            pool="threads",
            concurrency=self._num_threads,
            queues=[*self._queues, self._pings.queue_name],
            without_gossip=True,
            without_mingle=True,
            quiet=True,
        )
        worker.start()
        return int(worker.exitcode or 0)

    def num_taken(self, lane: str) -> int:
        """The number of slots of the lane that are in use."""
        return self._slots.taken(lane)

    def _give_back(self, request_id: str) -> None:
        with self._lock:
            lanes = self._taken.get(request_id)
            lane = lanes.pop() if lanes else None
            if not lanes:
                self._taken.pop(request_id, None)
        if lane is not None:
            self._slots.give_back(lane)

    def _pause(self, lane: str) -> None:
        self._paused.add(lane)
        self._settle_soon()

    def _resume(self, lane: str) -> None:
        self._paused.discard(lane)
        self._settle_soon()

    def _settle_soon(self) -> None:
        # `call_soon` wakes Celery's loop, the only thread that may touch its consumer.
        if self._celery_consumer is not None:
            self._celery_consumer.call_soon(self._settle)

    def _settle(self) -> None:
        consumer = self._celery_consumer
        if consumer.task_consumer is None:
            return  # not connected; paused lanes stay paused on the next connection
        for queue in self._queues:
            paused, consuming = lane_of(queue) in self._paused, consumer.task_consumer.consuming_from(queue)
            if paused and consuming:
                consumer.cancel_task_queue(queue)
            elif not paused and not consuming:
                consumer.add_task_queue(queue)


def _keep_logging(**_: Any) -> None:
    """Connected to `setup_logging`, it keeps Celery from replacing this process' log handlers."""
