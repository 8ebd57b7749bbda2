"""S2: a broker that hangs keeps a request for a moment, and the next ones not at all."""

import threading
import time
from typing import Any

from structlog.testing import capture_logs

from storage.dispatches import Dispatch
from tasks.dispatch import Dispatcher
from tasks.prompt_dispatcher import PromptDispatcher


class HangingCelery:
    """Takes messages; while it hangs, a send returns only when it is told to go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.sent: list[str] = []
        self.num_tries = 0

    def send_task(self, *, args: list[str], **_message: object) -> None:
        self.num_tries += 1
        assert self.go_on.wait(30)
        self.sent.append(args[0])


def dispatch(number: int) -> Dispatch:
    return Dispatch(f"job_{number}", "sd", "interactive", 1, number, 20, 128, 128, 1)


def test_S2_a_request_waits_for_a_hung_broker_a_moment_and_the_next_ones_not_at_all() -> None:
    celery = HangingCelery()
    dispatcher = PromptDispatcher(Dispatcher(celery), max_wait_seconds=0.1)  # type: ignore[arg-type]
    assert dispatcher.dispatch([dispatch(0)])
    celery.go_on.clear()
    assert not dispatcher.dispatch([dispatch(1)])
    began_at = time.monotonic()
    assert not any(dispatcher.dispatch([dispatch(number)]) for number in range(2, 1000))
    assert time.monotonic() - began_at < 5
    assert celery.num_tries == 2, "one try is under way, and nobody makes another"
    assert dispatcher.num_failed == 999
    celery.go_on.set()
    while not dispatcher.dispatch([dispatch(1000)]):
        time.sleep(0.01)
    assert celery.sent == ["job_0", "job_1", "job_1000"]
    assert dispatcher.num_dispatched == 3


def test_an_error_that_nobody_expects_is_logged_and_the_next_dispatch_is_sent() -> None:
    class BrokenOnce(HangingCelery):
        def send_task(self, **message: Any) -> None:
            if not self.num_tries:
                self.num_tries += 1
                raise ZeroDivisionError
            super().send_task(**message)

    dispatcher = PromptDispatcher(Dispatcher(BrokenOnce()), max_wait_seconds=30)  # type: ignore[arg-type]
    with capture_logs() as logs:
        assert not dispatcher.dispatch([dispatch(1)])
    # The thread of an earlier test's dispatcher may still try to send its events, and has no broker for them.
    assert [one["event"] for one in logs if one["event"] != "events_not_sent"] == ["dispatch_failed"]
    assert dispatcher.dispatch([dispatch(2)])
    assert (dispatcher.num_dispatched, dispatcher.num_failed) == (1, 1)


def test_S2_what_was_given_up_before_it_began_is_not_sent_any_more() -> None:
    celery = HangingCelery()
    celery.go_on.clear()
    # A clock that stands still: no try looks late, so that the second one queues behind the first.
    dispatcher = PromptDispatcher(Dispatcher(celery), max_wait_seconds=0.05, clock=lambda: 0.0)  # type: ignore[arg-type]
    assert not dispatcher.dispatch([dispatch(1)])
    assert not dispatcher.dispatch([dispatch(2)])
    celery.go_on.set()
    while not dispatcher.dispatch([dispatch(3)]):
        time.sleep(0.01)
    assert "job_2" not in celery.sent
