"""Publishes dispatches: one Celery message for each committed dispatch, best effort, raising nothing.

A dispatch that cannot be published is logged and counted; the sweeper redispatches it. It reads and writes no
rows. Jobs go to the queue of their tier, webhook deliveries to the queue `cpu`.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from storage.dispatches import Dispatch
from tasks.queues import CPU_QUEUE, DELIVER, GENERATE, queue_name

log = structlog.get_logger()

REST_SECONDS = 1.0
MAX_EVENTS = 1000
"""Further events push out the oldest ones."""
DISPATCH_NUMBER_HEADER = "calotype_dispatch_number"


class SentEvents:
    """The events by which Flower shows a task that no worker has received yet; safe to share between threads.

    Celery would publish each with its task, which costs as much as the task itself. Here many share a message
    (`task.multi`, as workers do). Losing them loses nothing else.
    """

    def __init__(self, celery: Celery) -> None:
        self._celery = celery
        self._lock = threading.Lock()
        self._waiting: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)

    def add(self, message: Mapping[str, Any]) -> None:
        """Keep the event of a task that was just published, until `flush`."""
        event = {
            "uuid": message["task_id"],
            "root_id": message["task_id"],
            "parent_id": None,
            "name": message["name"],
            "args": repr(message["args"]),
            "kwargs": message.get("kwargsrepr", "{}"),
            "retries": 0,
            "eta": None,
            "expires": None,
            "queue": message["queue"],
            "exchange": "",
            "routing_key": message["queue"],
            "timestamp": time.time(),
        }
        with self._lock:
            self._waiting.append(event)

    def flush(self) -> None:
        """Publish all events in one message. Raises nothing."""
        if not self._waiting:
            return
        try:
            with (
                self._celery.producer_or_acquire() as producer,
                self._celery.events.Dispatcher(
                    producer.connection,
                    channel=producer.channel,
                    buffer_while_offline=False,
                    buffer_group=frozenset({"task"}),
                    buffer_limit=MAX_EVENTS + 1,
                ) as events,
            ):
                for event in self._take():
                    events.send("task-sent", **event)
                events.flush()
        except Exception as error:  # of kombu, of the broker's own client, or of the network
            log.warning("events_not_sent", error=str(error))

    def _take(self) -> list[dict[str, Any]]:
        """The events that wait, each for one thread alone."""
        with self._lock:
            taken = list(self._waiting)
            self._waiting.clear()
        return taken


class Dispatcher:
    """Publishes messages to their queues; safe to share between threads.

    Unless it `shows_at_once`, its caller has to call `show` soon after it has published messages.
    """

    def __init__(
        self,
        celery: Celery,
        *,
        shows_at_once: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._celery = celery
        self._events = SentEvents(celery)
        self._shows_at_once = shows_at_once
        self._clock = clock
        self._rest_until = 0.0
        self._lock = threading.Lock()
        self.num_dispatched = 0
        self.num_failed = 0

    def dispatch(self, dispatches: Sequence[Dispatch]) -> bool:
        """Publish one message per dispatch; returns `False` if the broker did not accept them all.

        For a second after a failure it fails at once, so that a broker that is down delays no caller.
        """
        return self._dispatch([job_message(dispatch) for dispatch in dispatches])

    def show(self) -> None:
        """Show Flower what was published since the last call. Raises nothing."""
        self._events.flush()

    def dispatch_deliveries(self, delivery_ids: Sequence[str]) -> bool:
        """Publish one message per webhook delivery, in the same way."""
        return self._dispatch([_delivery_message(id_) for id_ in delivery_ids])

    def _dispatch(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        for position, message in enumerate(messages):
            if self._clock() < self._rest_until or not self._send(message):
                with self._lock:
                    self.num_failed += len(messages) - position
                return False
        if self._shows_at_once:
            self.show()
        return True

    def _send(self, message: Mapping[str, Any]) -> bool:
        try:
            self._celery.send_task(**message)
        except (OperationalError, OSError) as error:
            self._rest_until = self._clock() + REST_SECONDS
            log.warning("dispatch_failed", id=message["args"][0], error=str(error))
            return False
        self._events.add(message)
        with self._lock:
            self.num_dispatched += 1
        return True


def job_message(dispatch: Dispatch) -> dict[str, Any]:
    """The arguments of `Celery.send_task` for a job. Its args are for people to read, except the job's id."""
    shown = {
        "tier": dispatch.tier,
        "lane": dispatch.lane,
        "steps": dispatch.num_steps,
        "size": f"{dispatch.width}x{dispatch.height}",
        "images": dispatch.num_images,
    }
    return {
        "name": GENERATE,
        "task_id": dispatch.job_id,  # the same for every dispatch of the job: ADR 0018
        "args": [dispatch.job_id, dispatch.dispatch_seq],
        "kwargsrepr": repr(shown),  # a header that only Flower reads; the task gets no keyword arguments
        "queue": queue_name(dispatch.tier, dispatch.lane),
        "headers": {DISPATCH_NUMBER_HEADER: dispatch.dispatch_number},
    }


def _delivery_message(delivery_id: str) -> dict[str, Any]:
    return {"name": DELIVER, "task_id": delivery_id, "args": [delivery_id], "queue": CPU_QUEUE}
