"""Ringing bells: one Celery message for each committed bell, best effort and never an error.

A bell that cannot be rung is logged and counted; the sweeper rings it again. It reads and writes no row.
"""

import threading
import time
from collections.abc import Callable, Sequence

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from storage.bells import Bell
from tasks.queues import GENERATE, queue_name

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
        for position, bell in enumerate(bells):
            if self._clock() < self._rest_until or not self._send(bell):
                with self._lock:
                    self.num_failed += len(bells) - position
                return False
        return True

    def _send(self, bell: Bell) -> bool:
        try:
            self._celery.send_task(
                GENERATE,
                args=[bell.job_id, bell.dispatch_seq],
                queue=queue_name(bell.tier, bell.lane),
                headers={RING_NUMBER_HEADER: bell.ring_number},
            )
        except (OperationalError, OSError) as error:
            self._rest_until = self._clock() + REST_SECONDS
            log.warning("bell_not_rung", job_id=bell.job_id, error=type(error).__name__)
            return False
        with self._lock:
            self.num_rung += 1
        return True
