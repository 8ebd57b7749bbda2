"""The events that show Flower what was published: none lost between threads, one message, and a limit."""

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery import Celery
from celery.events import get_exchange
from kombu import Queue

from tasks.dispatch import MAX_EVENTS, SentEvents


class FakeEvents:
    """Celery's dispatcher of events; `before_send` runs whenever a thread is about to send one."""

    def __init__(self, before_send: Callable[[], None], published: list[str]) -> None:
        self._before_send = before_send
        self._published = published
        self._buffer: list[str] = []

    @property
    def send(self) -> Callable[..., None]:
        self._before_send()
        return lambda _name, **event: self._buffer.append(event["uuid"])

    def flush(self) -> None:
        self._published += self._buffer


def message(number: int) -> dict[str, Any]:
    return {"task_id": f"job_{number}", "name": "calotype.generate", "args": [f"job_{number}"], "queue": "sd"}


@pytest.fixture
def celery() -> Iterator[Celery]:
    """Celery with kombu's broker in memory."""
    app = Celery(broker="memory://", set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def messages(celery: Celery) -> Iterator[Callable[[], list[list[dict[str, Any]]]]]:
    """A function that returns the messages with events which were published since it was last called."""
    with celery.connection_for_read() as connection:
        exchange = get_exchange(connection)
        queue = Queue("seen", exchange, routing_key="#", channel=connection.default_channel)
        queue.declare()

        def take() -> list[list[dict[str, Any]]]:
            found = []
            while (one := queue.get(no_ack=True)) is not None:
                found.append(one.payload)
            return found

        yield take


def test_all_events_share_a_message(
    celery: Celery, messages: Callable[[], list[list[dict[str, Any]]]]
) -> None:
    sent = SentEvents(celery)
    for number in range(3):
        sent.add(message(number))
    sent.flush()
    (events,) = messages()
    assert [event["uuid"] for event in events] == ["job_0", "job_1", "job_2"]
    sent.flush()
    assert messages() == []


def test_the_newest_events_are_kept_when_there_are_too_many(
    celery: Celery, messages: Callable[[], list[list[dict[str, Any]]]]
) -> None:
    sent = SentEvents(celery)
    for number in range(MAX_EVENTS + 5):
        sent.add(message(number))
    sent.flush()
    (events,) = messages()
    assert [event["uuid"] for event in events] == [f"job_{number}" for number in range(5, MAX_EVENTS + 5)]


def test_two_threads_that_flush_at_once_lose_no_event() -> None:
    published: list[str] = []
    num_sends = 0

    def flush_beside() -> None:
        nonlocal num_sends
        num_sends += 1
        if num_sends == 2:  # one event is buffered, the other one is about to be taken or sent
            other = threading.Thread(target=sent.flush)
            other.start()
            other.join(30)

    celery = SimpleNamespace(
        producer_or_acquire=lambda: nullcontext(SimpleNamespace(connection=None, channel=None)),
        events=SimpleNamespace(Dispatcher=lambda *_, **__: nullcontext(FakeEvents(flush_beside, published))),
    )
    sent = SentEvents(cast("Celery", celery))
    sent.add(message(1))
    sent.add(message(2))
    sent.flush()
    assert sorted(published) == ["job_1", "job_2"]


def test_events_that_no_broker_took_are_kept_for_the_next_flush(
    messages: Callable[[], list[list[dict[str, Any]]]], celery: Celery
) -> None:
    is_down = [True]

    def acquire() -> Any:
        if is_down:
            raise ConnectionRefusedError
        return celery.producer_or_acquire()

    sent = SentEvents(cast("Celery", SimpleNamespace(producer_or_acquire=acquire, events=celery.events)))
    sent.add(message(1))
    sent.flush()
    is_down.clear()
    sent.flush()
    (events,) = messages()
    assert [event["uuid"] for event in events] == ["job_1"]
