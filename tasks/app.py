"""The Celery application: its queues and its configuration.

It lists no task modules, so that the API and Flower can import it without torch; each worker registers its
tasks in its own process. `docs/adr/0002-the-message-is-a-doorbell.md` gives the reason for every option.
"""

import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any, Self

import structlog
from celery import Celery
from celery.app.amqp import AMQP
from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher
from kombu import Connection, Queue
from kombu.transport import TRANSPORT_ALIASES, redis
from redis.exceptions import ResponseError

from settings import load_settings
from tasks.broker import tls_options
from tasks.queues import CPU_QUEUE, PingsFirst, queues_of

log = structlog.get_logger()

RECONNECT_SECONDS = 2.0
POLL_SECONDS = 0.2
"""The timeout of a poll (BRPOP) for messages, and so the longest time until an idle worker sees a signal."""
EVENTS_SECONDS = 0.2
"""How long a worker gathers events of tasks before it sends them."""
MAX_KEPT_EVENTS = 10_000
"""The events of tasks that a worker keeps while the broker is away."""
KEEPALIVE = {
    option: value
    for name, value in (
        ("TCP_KEEPIDLE", 5),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 10_000),  # ms; keepalives do not cover data that was sent and not acknowledged
    )
    if (option := getattr(socket, name, None)) is not None
}
"""As for Postgres: by default Linux notices only after two hours that a connection was dropped silently."""


def make_celery(url: str, key_prefix: str, tiers: Iterable[str], *, ca_file: Path | None = None) -> Celery:
    """An application with one queue for each tier, and the queue `cpu`; other names are errors.

    Over `rediss` the broker's certificate is verified against `ca_file`, or the system's authorities.
    """
    app = Celery("calotype", broker=url, set_as_current=False, amqp=_Amqp, events=_Events)
    app.conf.update(
        # A message is gone once it is received: the row is what is durable, and what kombu keeps of messages
        # that are not acked yet costs two round trips for each.
        task_queues=[Queue(name, no_ack=True) for name in (*queues_of(tiers), CPU_QUEUE)],
        task_default_queue=CPU_QUEUE,
        task_create_missing_queues=False,
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        task_publish_retry=True,
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0, "interval_max": 0.2},
        task_send_sent_event=False,  # `tasks.dispatch` sends these events, many in a message
        worker_send_task_events=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=3,
        broker_use_ssl=tls_options(url, ca_file) or None,
        broker_transport_options={
            "global_keyprefix": key_prefix,
            "queue_order_strategy": "tasks.queues:PingsFirst",
            "visibility_timeout": 3600,
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "socket_keepalive_options": KEEPALIVE,
            "polling_interval": POLL_SECONDS,
            "health_check_interval": 5,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
        },
    )
    return app


class _RedisChannel(redis.Channel):
    """A channel that keeps its Redis client, and can poll without waiting in the broker.

    kombu makes a client for each message that it sends, which costs more than sending it. A client holds no
    connection of its own: it takes one from the channel's pool for each command.

    LMPOP (Redis 7) answers at once. BRPOP with a time-out of a millisecond does not, since an idle server
    looks at time-outs ten times a second; nor does a full server run BRPOP within MULTI and EXEC.
    """

    is_asking = False
    """Whether the poll that was sent last does not wait."""
    may_ask = True
    """False once the broker has refused LMPOP: then every poll waits, as kombu's own."""

    def _brpop_start(self: Any, timeout: float | None = None) -> None:
        self.is_asking = self.may_ask and not PingsFirst.waits()
        if not self.is_asking:
            super()._brpop_start(timeout)  # type: ignore[misc]  # not in kombu's stubs
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        keys = [
            f"{self.global_keyprefix}{self._q_for_pri(queue, step)}"
            for step in self.priority_steps
            for queue in queues
        ]
        self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        self.client.connection.send_command("LMPOP", len(keys), *keys, "RIGHT", "COUNT", 1)

    def _brpop_read(self: Any, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # the same
        except ResponseError as error:
            if not self.is_asking:
                raise
            self.may_ask = False
            log.warning("broker_refused_lmpop", error=str(error))
            raise Empty from error

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous)  # type: ignore[misc]  # the same
        client.set_response_callback("BRPOP", _popped)
        return client

    @contextmanager
    def conn_or_acquire(self: Any, client: Any = None) -> Iterator[Any]:
        """Give the client, or the channel's own."""
        if client is None:
            client = vars(self).get("kept_client")
            # The pool is another one after a fork or a lost connection.
            if client is None or client.connection_pool is not self.pool:
                client = self.kept_client = self._create_client()
        yield client


def _popped(reply: Sequence[Any] | None) -> tuple[Any, Any] | None:
    """The queue and the message of a reply to BRPOP or LMPOP, of which the latter has a list of messages."""
    if not reply:
        return None
    queue, found = reply
    return queue, found[0] if isinstance(found, list) else found


class _RedisTransport(redis.Transport):
    Channel = _RedisChannel


# Also of pooled connections, which kombu makes itself.
TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:{_RedisTransport.__name__}"))


class _PromptConnection(Connection):
    """A connection that is retried every two seconds, however long the broker has been down.

    kombu's own pauses grow to 30 seconds, and Celery has no setting for them: a worker would receive nothing
    for that long after the broker is back.
    """

    def ensure_connection(self, *arguments: Any, **options: Any) -> Self:
        """Connect as kombu does, with constant pauses."""
        pauses = {"interval_start": RECONNECT_SECONDS, "interval_step": 0, "interval_max": RECONNECT_SECONDS}
        return super().ensure_connection(*arguments, **{**pauses, **options})


class _Amqp(AMQP):
    Connection = _PromptConnection


class _PromptDispatcher(EventDispatcher):
    """Sends an event once, on the loop that also receives messages.

    Celery retries its heartbeat events until the broker is back. The loop would not notice meanwhile that it
    has lost the connection for messages as well. Events of tasks are only kept by the threads of jobs: one
    that sent them would wait for a broker that does not answer. Of many, the newest are kept.

    The events of `EVENTS_SECONDS` go in one message. Celery sends what it has at every turn of the loop, and
    the loop receives no task until the broker has answered.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.buffer_limit = 2 * MAX_KEPT_EVENTS  # never reached, so that only the loop sends
        self._loop: Any = None
        on_kept: Any = options.get("on_send_buffered")
        if on_kept is not None:
            # Celery passes a method of its consumer, which owns the loop.
            self._loop = on_kept.__self__.hub
            self._loop.on_close.add(self._flush_at_end)
            self.on_send_buffered = self._flush_later
        self._will_flush = False

    def send(self, *arguments: Any, **options: Any) -> Any:
        """Send without retries: an event that was not sent is buffered."""
        for events in list(vars(self)["_group_buffer"].values()):
            if len(events) > MAX_KEPT_EVENTS:
                del events[: MAX_KEPT_EVENTS // 2]
        return super().send(*arguments, **{**options, "retry": False})

    def extend_buffer(self, other: Any) -> None:
        """Also take over what `other` still buffers: events of jobs that ended while the broker was down."""
        super().extend_buffer(other)
        gathered: dict[str, list[Any]] = vars(self)["_group_buffer"]
        for group, events in other._group_buffer.items():
            gathered[group].extend(events)
            events.clear()

    def _flush_later(self) -> None:
        if not self._will_flush:
            self._will_flush = True
            # `call_soon` wakes the loop, the only thread that may set a timer. If the connection is lost
            # meanwhile, Celery hands these events to its next dispatcher, which sends them.
            self._loop.call_soon(self._loop.call_later, EVENTS_SECONDS, self._flush_kept)

    def _flush_kept(self) -> None:
        self._will_flush = False
        self.flush()

    def _flush_at_end(self, _loop: object) -> None:
        # Of jobs that ended while the worker was stopping: the loop that would call the timer has ended. It
        # also closes when the connection is lost, where sending would wait for the broker.
        from celery.worker import state  # here, as the API makes an application too and has no worker

        if state.should_stop is not None and state.should_stop is not False:  # an exit code, which may be 0
            self.flush()

    def close(self) -> None:
        """Also forget the loop."""
        super().close()
        if self._loop is not None:
            self._loop.on_close.discard(self._flush_at_end)


class _Events(Events):
    dispatcher_cls = f"{__name__}:_PromptDispatcher"


def __getattr__(name: str) -> Any:
    # Only `tasks.flower` imports `celery`; the API imports `make_celery` alone and needs no settings here.
    if name != "celery":
        raise AttributeError(name)
    settings = load_settings()
    settings.require("broker_url")
    globals()["celery"] = app = make_celery(**settings.celery)
    return app
