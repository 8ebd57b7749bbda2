"""A worker tries a broker that is away again soon, however long it has been away."""

import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tasks.app import EVENTS_SECONDS, RECONNECT_SECONDS, make_celery


class EnoughSeen(Exception):
    """Ends the tries."""


def test_S2_pauses_between_tries_to_reach_the_broker_do_not_grow() -> None:
    pauses: list[float] = []

    def note(_: Exception, pause_seconds: float) -> None:
        pauses.append(pause_seconds)
        if len(pauses) == 2:
            raise EnoughSeen

    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        celery = make_celery(f"redis://127.0.0.1:{nobody.getsockname()[1]}/0", "test:", ["sd"])
        # As Celery's consumer calls it.
        with celery.connection_for_read() as connection, pytest.raises(EnoughSeen):
            connection.ensure_connection(note, callback=lambda: None)
    assert pauses == [RECONNECT_SECONDS, RECONNECT_SECONDS]


class AwayProducer:
    """What an event is sent by; the broker is away."""

    retries: bool

    def publish(self, *_: Any, retry: bool, **__: Any) -> None:
        self.retries = retry
        raise ConnectionRefusedError


def test_S2_an_event_is_tried_once_and_kept_while_the_broker_is_away() -> None:
    celery, producer = make_celery("redis://127.0.0.1:1/0", "test:", ["sd"]), AwayProducer()
    events = celery.events.Dispatcher(celery.connection_for_write(), hostname="w", enabled=False)
    events.enabled, events.producer = True, producer
    # Sent like Celery's heartbeat, on the loop that receives messages.
    events.send("worker-heartbeat", retry=True)
    assert not producer.retries
    assert [event["type"] for event, _ in events._outbound_buffer] == ["worker-heartbeat"]


def test_S2_a_connection_to_the_broker_that_a_network_forgot_is_noticed_by_the_kernel() -> None:
    conf = make_celery("redis://127.0.0.1:1/0", "test:", ["sd"]).conf
    options = conf.broker_transport_options["socket_keepalive_options"]
    assert options[socket.TCP_KEEPIDLE] + options[socket.TCP_KEEPINTVL] * options[socket.TCP_KEEPCNT] < 15
    assert options[socket.TCP_USER_TIMEOUT] < 15_000


class Recorder:
    """Takes what a dispatcher publishes."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def publish(self, events: Any, **_: Any) -> None:
        self.sent.append(events)


def test_S23_what_was_gathered_while_the_broker_was_away_is_told_over_the_next_connection() -> None:
    """Celery's own dispatcher hands on what it failed to send, but not what it still gathers."""
    app = make_celery("memory://localhost", "x:", ["sd"])
    with app.connection_for_write() as connection:
        old, new = (app.events.Dispatcher(connection, buffer_group=["task"]) for _ in range(2))
        old.send("task-failed", uuid="job_1")
        old.close()
        recorder = Recorder()
        new.extend_buffer(old)
        new.publisher = recorder
        new.flush()
    assert [[event["uuid"] for event in events] for events in recorder.sent] == [["job_1"]]


class Loop:
    """Celery's loop, turned by hand."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], object]] = []
        self.later: list[tuple[float, Callable[[], object]]] = []
        self.on_close: set[Callable[[object], object]] = set()

    def call_soon(self, function: Callable[..., object], *arguments: Any) -> None:
        self.soon.append(partial(function, *arguments))

    def call_later(self, seconds: float, function: Callable[[], object]) -> None:
        self.later.append((seconds, function))


class CeleryConsumer:
    """What Celery makes a dispatcher for."""

    def __init__(self) -> None:
        self.hub = Loop()

    def on_send_event_buffered(self) -> None:
        raise AssertionError("Celery would flush at the next turn of its loop")


def test_events_of_tasks_that_come_close_together_are_one_message() -> None:
    app, consumer, recorder = make_celery("memory://localhost", "x:", ["sd"]), CeleryConsumer(), Recorder()
    with app.connection_for_write() as connection:
        dispatcher = app.events.Dispatcher(
            connection, buffer_group=["task"], on_send_buffered=consumer.on_send_event_buffered
        )
        dispatcher.publisher = recorder
        for name in ("task-received", "task-started", "task-succeeded"):
            dispatcher.send(name, uuid="job_1")
        [wake] = consumer.hub.soon
        wake()
        assert not recorder.sent
        [(seconds, flush)] = consumer.hub.later
        assert seconds == EVENTS_SECONDS
        flush()
        assert [[event["type"] for event in events] for events in recorder.sent] == [
            ["task-received", "task-started", "task-succeeded"]
        ]
        dispatcher.send("task-received", uuid="job_2")
        assert len(consumer.hub.soon) == 2
        dispatcher.close()
        assert not consumer.hub.on_close
