"""Celery's side of a worker: it hears bells, and stops hearing a lane whose slots are taken.

Owns the Celery worker of this process and its signals. It knows neither rows nor the engine: a bell is
handed to `answer`, and the end of the process to `on_shutdown`.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery import Celery, signals

from tasks.pings import Pings
from tasks.queues import GENERATE, lane_of, queues_of
from tasks.slots import Slots
from tasks.task_events import SilentRequest


class Consumer:
    """Consumes the queues of `tiers`, `slots` bells of each lane at a time, and the worker's `pings`."""

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
        """Answer bells on threads until SIGTERM; the exit code. `answer` must not raise."""

        def task(self_: Any, *arguments: Any, **_: Any) -> None:
            # Any arguments are taken, since a forged message must give its slot back as well; the
            # second one, the bell's number, is for people to read: the claim ignores it.
            try:
                if arguments and isinstance(arguments[0], str):
                    answer(arguments[0])
            finally:
                self._give_back(self_.request.id)

        def ready(sender: Any, **_: Any) -> None:
            self._celery_consumer = sender
            on_ready()

        def received(request: Any, **_: Any) -> None:
            # On Celery's loop, before it asks for the next message: a full lane is closed in time.
            # We send no ETA. Celery may refuse a message that has one, and tells nobody.
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
        """How many slots of the lane are taken now."""
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
            return  # between two connections; what is paused stays so in the next
        for queue in self._queues:
            paused, consuming = lane_of(queue) in self._paused, consumer.task_consumer.consuming_from(queue)
            if paused and consuming:
                consumer.cancel_task_queue(queue)
            elif not paused and not consuming:
                consumer.add_task_queue(queue)


def _keep_logging(**_: Any) -> None:
    """Connected to `setup_logging`, it keeps Celery from replacing this process' log handlers."""
