"""Ringing bells: one Celery message for each committed bell, best effort and never an error.

A bell that cannot be rung is logged and counted; the sweeper rings it again. It reads and writes no row.
Bells of jobs go to the queue of their tier and lane, those of webhook deliveries to the queue `cpu`.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from storage.bells import Bell
from tasks.queues import CPU_QUEUE, DELIVER, GENERATE, queue_name

log = structlog.get_logger()

REST_SECONDS = 1.0
RING_NUMBER_HEADER = "calotype_ring_number"


class Dispatcher:
    """Sends bells to their queues; safe to share between threads."""

    def __init__(self, celery: Celery, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._celery = celery
        self._clock = clock
        self._rest_until = 0.0
        self._lock = threading.Lock()
        self.num_rung = 0
        self.num_failed = 0

    def ring(self, bells: Sequence[Bell]) -> bool:
        """Publish the bells; `False` when the broker could not take them all. Raises nothing for that.

        After a failure it rests for a second, so that a dead broker costs each caller next to nothing.
        """
        return self._ring([_job_message(bell) for bell in bells])

    def ring_deliveries(self, delivery_ids: Sequence[str]) -> bool:
        """The same for webhook deliveries that are due."""
        return self._ring([_delivery_message(id_) for id_ in delivery_ids])

    def _ring(self, messages: Sequence[Mapping[str, Any]]) -> bool:
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
            log.warning("bell_not_rung", id=message["args"][0], error=str(error))
            return False
        with self._lock:
            self.num_rung += 1
        return True


def _job_message(bell: Bell) -> dict[str, Any]:
    shown = {
        "tier": bell.tier,
        "lane": bell.lane,
        "steps": bell.num_steps,
        "size": f"{bell.width}x{bell.height}",
        "images": bell.num_images,
    }
    return {
        "name": GENERATE,
        "task_id": bell.job_id,  # however often it is dispatched: ADR 0018
        "args": [bell.job_id, bell.dispatch_seq],
        "kwargsrepr": repr(shown),  # a header for Flower alone; the task gets no keyword arguments
        "queue": queue_name(bell.tier, bell.lane),
        "headers": {RING_NUMBER_HEADER: bell.ring_number},
    }


def _delivery_message(delivery_id: str) -> dict[str, Any]:
    return {"name": DELIVER, "task_id": delivery_id, "args": [delivery_id], "queue": CPU_QUEUE}
