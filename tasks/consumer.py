"""Celery's side of a worker: it receives messages, and polls for none while its interactive slots are taken.

Owns the Celery worker of this process, its signals, its interactive slots, and how often it polls. It also
runs tasks whose message never was in the broker. It knows neither rows nor devices: it passes a job id to
`answer`, and reports the end of the process to `on_shutdown`.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery import Celery, signals
from kombu import Message
from kombu.serialization import dumps

from engine.policy.free_workers import pause_seconds
from tasks.errors import TaskNotReceived
from tasks.pings import Pings
from tasks.queues import GENERATE, PingsFirst, queues_of
from tasks.task_events import SilentRequest


def _ignore(*_: object) -> None:
    return


class Pace:
    """When a worker polls for jobs, so that they go to workers that hold few (ADR 0036).

    A worker without jobs waits in the broker. One with jobs asks, if there are other workers, and pauses for
    `pause_seconds` after each poll that found nothing. Used on Celery's loop, but for `hurry`.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._polled_at = -math.inf

    def hurry(self) -> None:
        """Poll without a pause: there may be more messages. Can be called on any thread."""
        self._polled_at = -math.inf

    def seconds_until_poll(self, num_jobs: int) -> float:
        """The rest of the pause of a worker that holds so many jobs."""
        return max(0.0, self._polled_at + pause_seconds(num_jobs) - self._clock())

    def note_poll(self) -> None:
        """A poll begins."""
        self._polled_at = self._clock()


class Slots:
    """Counts the jobs of a lane that a worker holds at once; safe to share between threads.

    A slot is taken when a message is received, on Celery's loop, so that a full lane is no longer polled
    before its next message arrives.
    """

    def __init__(self, limit: int, *, on_free: Callable[[], None] = _ignore) -> None:
        self._limit = limit
        self._num_taken = 0
        self._lock = threading.Lock()
        self._on_free = on_free

    def take(self) -> None:
        """Take a slot."""
        with self._lock:
            self._num_taken += 1

    def give_back(self) -> None:
        """Release a slot; calls `on_free` if the lane was full, or is empty now."""
        with self._lock:
            self._num_taken -= 1
            is_told = self._num_taken in (self._limit - 1, 0)
        if is_told:
            self._on_free()

    @property
    def num_taken(self) -> int:
        """The number of slots that are in use."""
        return self._num_taken

    @property
    def are_taken(self) -> bool:
        """Whether no slot is free."""
        return self._num_taken >= self._limit


class Consumer:
    """Consumes the interactive queues of `tiers`, within the slots of that lane, and the queue of `pings`.

    It has a thread for each slot of both lanes. Bulk jobs do not come from the broker: `receive` starts them,
    and its caller counts their slots. Where it `has_others` that consume its queues, it polls at its `Pace`.
    """

    def __init__(
        self,
        app: Celery,
        tiers: Sequence[str],
        slots: Mapping[str, int],
        pings: Pings,
        has_others: Callable[[], bool],
    ) -> None:
        self._app = app
        self._queues = queues_of(tiers)
        self._pings = pings
        self._has_others = has_others
        self._num_threads = sum(slots.values()) + 1  # a ping takes no slot
        self._slots = Slots(slots["interactive"], on_free=self._poll_at_once)
        self._pace = Pace()
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()
        """The slots that each task took; a job that was dispatched twice takes two."""
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
            # Runs on Celery's loop before it polls for the next message.
            # We send no ETA. Celery may refuse a message with one, and sends no signal if it does.
            if request.delivery_info["routing_key"] in self._queues and request.eta is None:
                with self._lock:
                    self._taken[request.id] += 1
                self._slots.take()
                self._pace.hurry()

        def revoked(request: Any, **_: Any) -> None:
            self._give_back(request.id)

        def shutting_down(**_: Any) -> None:
            on_shutdown()

        self._app.conf.worker_disable_prefetch = False  # the slots bound what this worker holds
        PingsFirst.choose, PingsFirst.waits = self._queues_to_poll, self._waits
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

    @property
    def num_taken(self) -> int:
        """The number of interactive slots that are in use."""
        return self._slots.num_taken

    def receive(self, message: Mapping[str, Any]) -> None:
        """Run a task here as if its message had come from its queue, also while the broker is away.

        `message` holds arguments of `Celery.send_task`. It can be called on any thread once the worker was
        ready. Raises `TaskNotReceived` if the task will not run.
        """
        made = self._app.amqp.create_task_message(
            message["task_id"], message["name"], message["args"], kwargsrepr=message["kwargsrepr"]
        )
        content_type, encoding, body = dumps(made.body, serializer=self._app.conf.task_serializer)
        received = Message(
            body=body,
            content_type=content_type,
            content_encoding=encoding,
            headers={**made.headers, **message["headers"]},
            properties=made.properties,
            delivery_info={"exchange": "", "routing_key": message["queue"]},
        )
        try:
            # The strategy of the last connection stays valid: it passes the task to the thread pool, and its
            # event to a dispatcher that keeps events until the broker is back. There is nothing to ack.
            self._celery_consumer.strategies[message["name"]](received, None, _ignore, _ignore, ())
        except Exception as error:
            raise TaskNotReceived(f"Celery refused a task: {type(error).__name__}") from error

    def _give_back(self, request_id: str) -> None:
        with self._lock:
            has_slot = self._taken[request_id] > 0
            self._taken[request_id] -= 1
            if self._taken[request_id] <= 0:
                del self._taken[request_id]
        if has_slot:
            self._slots.give_back()

    def _queues_to_poll(self, queues: list[str]) -> list[str]:
        """Which of these the next poll for messages includes; asked by kombu on Celery's loop.

        While the slots are taken, it polls for pings that were sent, and else not at all.
        """
        if self._waits():
            return queues
        if self._slots.are_taken:
            queues = (
                [queue for queue in queues if queue not in self._queues] if self._pings.is_awaited else []
            )
        if not queues:
            return []
        if self._pace.seconds_until_poll(self._slots.num_taken):
            return []
        self._pace.note_poll()
        # The loop reads its timers before it asks here, so that a pause cannot be timed when it begins.
        self._celery_consumer.hub.call_later(pause_seconds(self._slots.num_taken), _ignore)
        return queues

    def _waits(self) -> bool:
        """Whether the next poll waits in the broker. While it does, it cannot be given other queues."""
        return not self._slots.num_taken or not (self._slots.are_taken or self._has_others())

    def _poll_at_once(self) -> None:
        self._pace.hurry()
        self._wake()

    def _wake(self) -> None:
        # The loop polls anew at its next turn, and `call_soon` makes it take one now.
        if self._celery_consumer is not None:
            self._celery_consumer.call_soon(_ignore)


def _keep_logging(**_: Any) -> None:
    """Connected to `setup_logging`, it keeps Celery from replacing this process' log handlers."""
