"""Celery's side of a worker: it receives messages, and polls for none while its interactive slots are taken.

Owns the Celery worker of this process, its signals, its interactive slots, and how often it polls. It also
runs tasks whose message never was in the broker. It knows neither rows nor devices: it passes a job id to
`answer`, and reports the end of the process to `on_shutdown`.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from celery import Celery, signals
from kombu import Message
from kombu.serialization import dumps

from engine.policy.free_workers import pause_seconds
from tasks.errors import TaskNotReceived
from tasks.pings import Pings
from tasks.queues import GENERATE, PingsFirst, queues_of
from tasks.task_events import SilentRequest

SHARE_AFTER_A_MESSAGE = 0.25
"""Of the usual pause, after each of the first `NUM_SHARED` messages in a row."""
NUM_SHARED = 2


def _ignore(*_: object) -> None:
    return


class Pace:
    """When a worker polls for jobs, so that they go to workers that hold few (ADR 0036).

    A worker without interactive jobs waits in the broker. One with jobs asks, if there are other workers, and
    pauses for `pause_seconds` after each poll that found nothing. The first two messages in a row are each
    followed by a shorter pause, so that several workers share a few jobs that arrive together; more in a row
    are taken without one. Used on Celery's loop, but for `hurry`.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._polled_at = -math.inf
        self._num_found = 0  # messages in a row
        self._has_found = False  # whether the last poll did

    def hurry(self) -> None:
        """Poll without pauses while there are messages: they may have piled up. Works on any thread."""
        self._polled_at, self._num_found, self._has_found = -math.inf, NUM_SHARED, True

    def seconds_until_poll(self, num_jobs: int) -> float:
        """The rest of the pause of a worker that holds so many jobs."""
        pause = pause_seconds(num_jobs)
        if self._has_found:
            pause *= SHARE_AFTER_A_MESSAGE if self._num_found <= NUM_SHARED else 0.0
        return max(0.0, self._polled_at + pause - self._clock())

    def note_poll(self) -> None:
        """A poll begins."""
        if not self._has_found:
            self._num_found = 0
        self._has_found = False
        self._polled_at = self._clock()

    def note_message(self) -> None:
        """The poll found a message."""
        self._num_found += 1
        self._has_found = True


class Slots:
    """Counts the jobs of a lane that a worker holds at once; safe to share between threads.

    A slot is taken when a message is received, on Celery's loop, so that a full lane is no longer polled
    before its next message arrives.
    """

    def __init__(
        self, limit: int, *, on_free: Callable[[], None] = _ignore, on_empty: Callable[[], None] = _ignore
    ) -> None:
        self._limit = limit
        self._num_taken = 0
        self._lock = threading.Lock()
        self._on_free, self._on_empty = on_free, on_empty

    def take(self) -> None:
        """Take a slot."""
        with self._lock:
            self._num_taken += 1

    def give_back(self) -> None:
        """Release a slot; calls `on_free` if the lane was full, or else `on_empty` if it is empty now."""
        with self._lock:
            self._num_taken -= 1
            was_full, is_empty = self._num_taken == self._limit - 1, not self._num_taken
        if was_full:
            self._on_free()
        elif is_empty:
            self._on_empty()

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
    The queues of `closed_tiers` are not polled.
    """

    def __init__(
        self,
        app: Celery,
        tiers: Sequence[str],
        slots: Mapping[str, int],
        pings: Pings,
        has_others: Callable[[], bool],
        closed_tiers: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._app = app
        self._queues = queues_of(tiers)
        self._pings = pings
        self._has_others = has_others
        self._closed_tiers = closed_tiers
        self._num_threads = sum(slots.values()) + 1  # a ping takes no slot
        self._slots = Slots(slots["interactive"], on_free=self._poll_at_once, on_empty=self._wake)
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
                self._pace.note_message()
                self._wake_in(self._pace.seconds_until_poll(self._slots.num_taken))

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
        closed = queues_of(self._closed_tiers())
        queues = [queue for queue in queues if queue not in closed]
        if self._waits():
            self._pace.note_poll()
            return queues
        is_full, num_taken = self._slots.are_taken, self._slots.num_taken
        if is_full:
            pings = [queue for queue in queues if queue not in self._queues]
            queues = pings if self._pings.is_awaited else []
        if not queues or self._pace.seconds_until_poll(num_taken):
            return []
        self._pace.note_poll()
        if is_full and not self._slots.are_taken:
            self._pace.hurry()  # it was told before this poll, which does not include the lane
        self._wake_in(pause_seconds(num_taken))
        return queues

    def _waits(self) -> bool:
        """Whether the next poll waits in the broker. While it does, it cannot be given other queues."""
        return not self._slots.num_taken or not (self._slots.are_taken or self._has_others())

    def _poll_at_once(self) -> None:
        self._pace.hurry()
        self._wake()

    def _wake_in(self, seconds: float) -> None:
        """Have the loop turn when a pause is over.

        Called before the loop chooses the time-out of a turn: when a poll begins, whose reply begins the next
        turn, and when a message was received. A pause that begins in `_queues_to_poll` would be noticed late.
        """
        if self._celery_consumer is not None:
            self._celery_consumer.hub.call_later(seconds, _ignore)

    def _wake(self) -> None:
        # The loop polls anew at its next turn, and `call_soon` makes it take one now.
        if self._celery_consumer is not None:
            self._celery_consumer.call_soon(_ignore)


def _keep_logging(**_: Any) -> None:
    """Connected to `setup_logging`, it keeps Celery from replacing this process' log handlers."""
