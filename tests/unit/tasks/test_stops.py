"""What signals do to a worker: the first drains, the second ends it at its next step, its own only drains."""

import signal
import threading
from collections.abc import Iterator

import pytest

from tasks.in_flight import InFlightJobs
from tasks.process_end import Stops

SECONDS = 10.0


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers as a worker has them; a second signal resets them, and the test puts back this process's."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda *_: None)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Called(threading.Event):
    """Counts its calls, and is set by the first."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __call__(self) -> None:
        self.num += 1
        self.set()


class Worker:
    """The ends of a worker that holds no job."""

    def __init__(self) -> None:
        self.drained, self.stopped, self.sent = Called(), Called(), Called()
        self.stops = Stops(
            self.drained,
            self.stopped,
            InFlightJobs(),
            lambda _: pytest.fail("nothing is held"),
            send_signal=self._send,
        )

    def _send(self) -> None:
        self.sent()
        self.stops.signaled()


def test_the_first_signal_drains_and_the_second_ends_the_engine() -> None:
    worker = Worker()
    worker.stops.signaled()
    assert worker.drained.wait(SECONDS)
    assert not worker.stopped.is_set()
    worker.stops.signaled()
    assert worker.stopped.wait(SECONDS)
    assert worker.drained.num == 1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_supervisors_signal_does_not_cut_short_the_drain_that_a_worker_began_itself() -> None:
    worker = Worker()
    worker.stops.end_itself()
    assert worker.drained.wait(SECONDS)
    worker.stops.signaled()
    assert worker.stopped.num == 0
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    worker.stops.signaled()
    assert worker.stopped.wait(SECONDS)
    assert worker.drained.num == 1


def test_a_worker_that_passes_a_limit_while_it_drains_goes_on_draining() -> None:
    """The last of its running jobs may be the one that it ends after."""
    worker = Worker()
    worker.stops.signaled()
    assert worker.drained.wait(SECONDS)
    worker.stops.end_itself()
    assert worker.stopped.num == 0
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    worker.stops.signaled()
    assert worker.stopped.wait(SECONDS)
    assert worker.drained.num == 1


def test_a_limit_that_is_passed_after_the_second_signal_sends_none() -> None:
    """It would end the process at once, with jobs held."""
    worker = Worker()
    for _ in range(2):
        worker.stops.signaled()
    assert worker.stopped.wait(SECONDS)
    worker.stops.end_itself()
    assert worker.sent.num == 0
