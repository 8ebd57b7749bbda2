"""The Celery application: its queues and its settings, and nothing that runs.

It lists no task modules, so that the web and Flower can import it without torch; `tasks.worker`
registers the tasks in the process that runs them. Every setting has its reason in
`docs/adr/0002-the-message-is-a-doorbell.md`.
"""

import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from celery import Celery
from celery.app.amqp import AMQP
from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher
from kombu import Connection, Queue

from settings import load_settings
from tasks.broker_tls import tls_options
from tasks.queues import CPU_QUEUE, queues_of

RECONNECT_SECONDS = 2.0
LISTEN_SECONDS = 0.2
"""How long one question for bells waits in the broker. A lane whose slots are free again is asked for in the
next question only: meanwhile the engine may have nothing to do."""
KEEPALIVE = {
    option: value
    for name, value in (
        ("TCP_KEEPIDLE", 5),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 10_000),  # ms; keepalives do not watch what was sent and not acknowledged
    )
    if (option := getattr(socket, name, None)) is not None
}
"""As for Postgres: Linux would notice after two hours that a network has forgotten a connection."""


def make_celery(url: str, key_prefix: str, tiers: Iterable[str], *, ca_file: Path | None = None) -> Celery:
    """An application that knows one queue for each tier and lane; any other name is an error.

    Over `rediss` the broker has to show a certificate of an authority in `ca_file`, or else of the system's.
    """
    app = Celery("calotype", broker=url, set_as_current=False, amqp=_Amqp, events=_Events)
    app.conf.update(
        task_queues=[Queue(name) for name in (*queues_of(tiers), CPU_QUEUE)],
        task_default_queue=CPU_QUEUE,
        task_create_missing_queues=False,
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        # Durability is the row's; an early ack leaves nothing behind to be delivered again.
        task_acks_late=False,
        task_publish_retry=True,
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0, "interval_max": 0.2},
        task_send_sent_event=True,
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
            "queue_order_strategy": "tasks.queue_order:InteractiveFirst",
            "visibility_timeout": 3600,
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "socket_keepalive_options": KEEPALIVE,
            "polling_interval": LISTEN_SECONDS,
            "health_check_interval": 5,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
        },
    )
    return app


class _PromptConnection(Connection):
    """A connection that is tried again every two seconds, however long the broker has been away.

    kombu's own pauses grow to 30 seconds, and Celery has no setting for them: a worker would hear nothing for
    that long after the broker has come back.
    """

    def ensure_connection(self, *arguments: Any, **options: Any) -> Self:
        """As kombu's, with pauses that do not grow."""
        pauses = {"interval_start": RECONNECT_SECONDS, "interval_step": 0, "interval_max": RECONNECT_SECONDS}
        return super().ensure_connection(*arguments, **{**pauses, **options})


class _Amqp(AMQP):
    Connection = _PromptConnection


class _PromptDispatcher(EventDispatcher):
    """Tries an event once, on the loop that also hears bells.

    Celery's heartbeat is tried until the broker is back. Meanwhile the loop would not find out that the
    connection for bells is lost as well.
    """

    def send(self, *arguments: Any, **options: Any) -> Any:
        """As Celery's, without trying again: what was not sent is buffered."""
        return super().send(*arguments, **{**options, "retry": False})

    def extend_buffer(self, other: Any) -> None:
        """As Celery's, with what `other` still gathers: the end of a job while the broker was away."""
        super().extend_buffer(other)
        gathered: dict[str, list[Any]] = vars(self)["_group_buffer"]
        for group, events in other._group_buffer.items():
            gathered[group].extend(events)
            events.clear()


class _Events(Events):
    dispatcher_cls = f"{__name__}:_PromptDispatcher"


def __getattr__(name: str) -> Any:
    # `tasks.flower` asks for it; the web, which only wants `make_celery`, does not.
    if name != "celery":
        raise AttributeError(name)
    settings = load_settings()
    settings.require("broker_url")
    tiers = [tier.name for tier in settings.catalogue.tiers]
    globals()["celery"] = app = make_celery(**settings.broker, tiers=tiers)
    return app
