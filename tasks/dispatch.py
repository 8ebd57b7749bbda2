"""Publishes dispatches: one Celery message for each committed dispatch, best effort, raising nothing.

A dispatch that cannot be published is logged and counted; the sweeper redispatches it. It reads and writes no
rows. Jobs go to the queue of their tier and lane, webhook deliveries to the queue `cpu`.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from storage.dispatches import Dispatch
from tasks.queues import CPU_QUEUE, DELIVER, GENERATE, queue_name

log = structlog.get_logger()

REST_SECONDS = 1.0
DISPATCH_NUMBER_HEADER = "calotype_dispatch_number"


class Dispatcher:
    """Publishes messages to their queues; safe to share between threads."""

    def __init__(self, celery: Celery, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._celery = celery
        self._clock = clock
        self._rest_until = 0.0
        self._lock = threading.Lock()
        self.num_dispatched = 0
        self.num_failed = 0

    def dispatch(self, dispatches: Sequence[Dispatch]) -> bool:
        """Publish one message per dispatch; returns `False` if the broker did not accept them all.

        For a second after a failure it fails at once, so that a broker that is down delays no caller.
        """
        return self._dispatch([_job_message(dispatch) for dispatch in dispatches])

    def dispatch_deliveries(self, delivery_ids: Sequence[str]) -> bool:
        """Publish one message per webhook delivery, in the same way."""
        return self._dispatch([_delivery_message(id_) for id_ in delivery_ids])

    def _dispatch(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        for position, message in enumerate(messages):
            if self._clock() < self._rest_until or not self._send(message):
                with self._lock:
                    self.num_failed += len(messages) - position
                return False
        return True

    def _send(self, message: Mapping[str, Any]) -> bool:
        try:
            self._celery.send_task(**message)
        except (OperationalError, OSError) as error:
            self._rest_until = self._clock() + REST_SECONDS
            log.warning("dispatch_failed", id=message["args"][0], error=str(error))
            return False
        with self._lock:
            self.num_dispatched += 1
        return True


def _job_message(dispatch: Dispatch) -> dict[str, Any]:
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
