"""The promise about ringing: it never raises, and a dead broker costs next to nothing."""

from ast import literal_eval
from typing import Any

from kombu.exceptions import OperationalError

from storage.dispatches import Dispatch
from tasks.dispatch import Dispatcher


class FakeCelery:
    """Takes messages, or refuses them as kombu does when the broker is down."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.num_tries = 0
        self.down = False

    def send_task(self, **message: Any) -> None:
        self.num_tries += 1
        if self.down:
            raise OperationalError("connection refused")
        self.sent.append(message)


def dispatch(number: int) -> Dispatch:
    return Dispatch(f"job_{number}", "sd", "bulk", 1, number, 20, 128, 96, 2)


def test_S23_a_message_is_the_jobs_own_and_carries_its_id_and_its_number_and_what_flower_shows() -> None:
    celery = FakeCelery()
    assert Dispatcher(celery).dispatch([dispatch(1)])  # type: ignore[arg-type]
    (message,) = celery.sent
    assert (message["task_id"], message["args"], message["queue"]) == ("job_1", ["job_1", 1], "sd.bulk")
    assert "kwargs" not in message
    assert literal_eval(message["kwargsrepr"]) == {
        "tier": "sd",
        "lane": "bulk",
        "steps": 20,
        "size": "128x96",
        "images": 2,
    }


def test_a_dead_broker_raises_nothing_and_is_left_alone_for_a_while() -> None:
    celery, now = FakeCelery(), [0.0]
    dispatcher = Dispatcher(celery, clock=lambda: now[0])  # type: ignore[arg-type]
    celery.down = True
    assert not dispatcher.dispatch([dispatch(1), dispatch(2), dispatch(3)])
    assert not dispatcher.dispatch([dispatch(4)])
    assert (celery.num_tries, dispatcher.num_failed) == (1, 4)
    celery.down, now[0] = False, 2.0
    assert dispatcher.dispatch([dispatch(5)])
    assert dispatcher.num_dispatched == 1
