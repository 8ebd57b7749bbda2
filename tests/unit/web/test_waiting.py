"""Many may wait for jobs at the price of one query a tick; nobody for ever, and some threads stay free."""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

from catalogue.states import State
from storage.errors import Unavailable
from web.waiting import Waiter

SOON = 5.0


class Rows:
    """The states of jobs, and how often they were asked for."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.num_queries = 0
        self.asked_for: set[str] = set()
        self.asked = threading.Event()
        self.down = False

    def __call__(self, job_ids: Collection[str]) -> Mapping[str, State]:
        self.num_queries += 1
        self.asked_for.update(job_ids)
        self.asked.set()
        if self.down:
            raise Unavailable("down")
        return {job_id: self.states.get(job_id, State.QUEUED) for job_id in job_ids}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)


def test_a_waiter_returns_when_its_job_ends() -> None:
    rows = Rows()
    waiter = Waiter(rows, max_waiters=4, poll_seconds=0.005)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(waiter.wait, "job_a", SOON)
        assert rows.asked.wait(SOON)
        assert not answer.done()
        rows.states["job_a"] = State.SUCCEEDED
        assert answer.result(SOON)
    assert waiter.num_waiters == 0


def test_a_waiter_returns_when_its_time_is_over() -> None:
    waiter = Waiter(Rows(), max_waiters=4, poll_seconds=0.005)
    began = time.monotonic()
    assert waiter.wait("job_a", 0.05)
    assert 0.05 <= time.monotonic() - began < SOON


def test_one_poller_asks_for_everybody() -> None:
    rows = Rows()
    waiter = Waiter(rows, max_waiters=8, poll_seconds=0.005)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(waiter.wait, f"job_{number % 4}", SOON) for number in range(8)]
        until(lambda: len(rows.asked_for) == 4 and waiter.num_waiters == 8)
        assert sum(thread.name == "job-waiter" for thread in threading.enumerate()) == 1
        rows.states = {f"job_{number}": State.FAILED for number in range(4)}
        assert all(answer.result(SOON) for answer in answers)


def test_beyond_the_limit_nobody_waits() -> None:
    waiter = Waiter(Rows(), max_waiters=2, poll_seconds=0.005)
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(waiter.wait, "job_a", SOON) for _ in range(2)]
        until(lambda: waiter.num_waiters == 2)
        began = time.monotonic()
        assert not waiter.wait("job_b", SOON)
        assert time.monotonic() - began < 1
        waiter.stop()
        assert all(answer.result(SOON) for answer in answers)


def test_nothing_is_asked_while_nobody_waits() -> None:
    rows = Rows()
    waiter = Waiter(rows, max_waiters=2, poll_seconds=0.005)
    waiter.wait("job_a", 0.02)
    until(lambda: waiter._poller is None)
    asked = rows.num_queries
    waiter.wait("job_b", 0.02)
    assert asked > 0
    assert rows.num_queries > asked


def test_a_database_that_is_down_for_a_moment_only_delays() -> None:
    rows = Rows()
    rows.down = True
    waiter = Waiter(rows, max_waiters=2, poll_seconds=0.005, max_pause_seconds=0.02)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(waiter.wait, "job_a", SOON)
        until(lambda: rows.num_queries > 2)
        rows.states["job_a"] = State.SUCCEEDED
        rows.down = False
        assert answer.result(SOON)


def test_a_stopped_waiter_lets_everybody_go() -> None:
    waiter = Waiter(Rows(), max_waiters=2, poll_seconds=0.005)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(waiter.wait, "job_a", SOON)
        until(lambda: waiter.num_waiters == 1)
        waiter.stop()
        assert answer.result(SOON)
    assert not waiter.wait("job_b", SOON)
