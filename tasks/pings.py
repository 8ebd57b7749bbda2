"""Messages that a worker sends to itself and receives on the same connection as its jobs.

Owns the queue of one worker and the state of its consumer. It does not know what a ping that is not received
means, nor what else the worker consumes.
"""

import time
from collections.abc import Callable
from typing import Any

import structlog
from celery import Celery, signals
from celery.utils import uuid
from kombu import Exchange, Queue

from tasks.queues import PING

log = structlog.get_logger()

QUEUE_SECONDS = 600.0
"""The queue of a dead worker is deleted after this time."""
AWAITED_SECONDS = 5.0
"""How long a worker that has no free slot polls for a ping, which the broker may have lost."""


class Pings:
    """The pings of one worker. Its Celery worker must consume `queue_name` besides its other queues.

    The queue is named after the device and the process, `cuda:0@<boot id>`.
    """

    def __init__(self, app: Celery, device: str, boot_id: str) -> None:
        self._app = app
        self.queue_name = f"{device}@{boot_id}"
        # The anonymous exchange needs no binding; a binding per process would stay in the broker.
        self._queue = Queue(self.queue_name, Exchange(""), routing_key=self.queue_name, expires=QUEUE_SECONDS)
        self._consumer: Any = None
        self._awaited_since: float | None = None
        app.amqp.queues[self.queue_name] = self._queue

    def listen(self, on_received: Callable[[], None]) -> None:
        """Call `on_received` on Celery's loop for each ping; must be called before the worker starts."""

        def ready(sender: Any, **_: Any) -> None:
            self._consumer = sender

        def received(request: Any, **_: Any) -> None:
            if self.is_one(request):
                self._awaited_since = None
                on_received()

        self._app.task(name=PING, send_events=False)(_do_nothing)
        signals.worker_ready.connect(ready, weak=False)
        signals.task_received.connect(received, weak=False)

    def is_one(self, request: Any) -> bool:
        """Whether a message that Celery received is a ping."""
        return bool(request.delivery_info["routing_key"] == self.queue_name)

    @property
    def is_connected(self) -> bool:
        """Whether the consumer is connected and subscribed to its queues."""
        consumer = self._consumer
        return bool(consumer and consumer.connection and consumer.task_consumer)

    @property
    def is_awaited(self) -> bool:
        """Whether a ping was sent in the last `AWAITED_SECONDS`, and none was received since."""
        since = self._awaited_since
        return since is not None and time.monotonic() - since < AWAITED_SECONDS

    def send(self) -> bool:
        """Send a ping over a separate connection; returns whether the broker accepted it."""
        message = self._app.amqp.create_task_message(uuid(), PING)
        connection = self._app.connection_for_write()
        failures: tuple[type[BaseException], ...] = (
            OSError, *connection.connection_errors, *connection.channel_errors,
        )  # fmt: skip
        try:
            # An explicit channel, since the default channel retries until the broker is back.
            with connection, connection.channel() as channel:
                self._awaited_since = time.monotonic()  # before it is sent, as it may be received at once
                connection.Producer(channel, serializer="json").publish(
                    message.body,
                    exchange="",
                    routing_key=self.queue_name,
                    headers=message.headers,
                    declare=[self._queue],
                    **message.properties,
                )
        except failures as error:
            self._awaited_since = None
            log.warning("ping_not_sent", error=type(error).__name__)
            return False
        if self._consumer is not None:
            self._consumer.call_soon(_do_nothing)  # a consumer that polls for nothing now polls for the ping
        return True


def _do_nothing(*_: Any, **__: Any) -> None:
    """The task of a ping, whose reception is all that matters."""
