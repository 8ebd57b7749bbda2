"""Many may wait for jobs; a notification ends a wait at once, and the poll every wait that none ended."""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from catalogue.states import State
from storage.errors import Unavailable
from web.waiting import Waiter

SOON = 60.0
RARELY = 1000.0


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


class Notifications:
    """Notifications that come, or do not, as the test says."""

    def __init__(self, *, is_listening: bool = False) -> None:
        self.is_listening = is_listening
        self.num_starts = 0

    def start(self) -> None:
        self.num_starts += 1


def make_waiter(rows: Rows, notifications: Notifications | None = None, **limits: Any) -> Waiter:
    """One that polls fast without notifications, and with them only when its wait begins."""
    given = {"max_waiters": 8, "poll_seconds": RARELY, "unheard_poll_seconds": 0.005, "gap_seconds": 0.001}
    return Waiter(rows, notifications or Notifications(), **{**given, **limits})


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)


def test_a_waiter_returns_when_its_job_ends() -> None:
    rows = Rows()
    waiter = make_waiter(rows, max_waiters=4)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(waiter.wait, "job_a", SOON)
        assert rows.asked.wait(SOON)
        assert not answer.done()
        rows.states["job_a"] = State.SUCCEEDED
        assert answer.result(SOON)
    assert waiter.num_waiters == 0


def test_a_waiter_returns_when_its_time_is_over() -> None:
    waiter = make_waiter(Rows(), max_waiters=4)
    began = time.monotonic()
    assert waiter.wait("job_a", 0.05)
    assert 0.05 <= time.monotonic() - began < SOON


def test_one_poller_asks_for_everybody() -> None:
    rows = Rows()
    waiter = make_waiter(rows, max_waiters=8)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(waiter.wait, f"job_{number % 4}", SOON) for number in range(8)]
        until(lambda: len(rows.asked_for) == 4 and waiter.num_waiters == 8)
        assert sum(thread.name == "job-waiter" for thread in threading.enumerate()) == 1
        rows.states = {f"job_{number}": State.FAILED for number in range(4)}
        assert all(answer.result(SOON) for answer in answers)


def test_beyond_the_limit_nobody_waits() -> None:
    waiter = make_waiter(Rows(), max_waiters=2)
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
    waiter = make_waiter(rows, max_waiters=2)
    waiter.wait("job_a", 0.02)
    until(lambda: waiter._poller is None)
    asked = rows.num_queries
    waiter.wait("job_b", 0.02)
    assert asked > 0
    assert rows.num_queries > asked


def test_a_database_that_is_down_for_a_moment_only_delays() -> None:
    rows = Rows()
    rows.down = True
    waiter = make_waiter(rows, max_waiters=2, max_pause_seconds=0.02)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(waiter.wait, "job_a", SOON)
        until(lambda: rows.num_queries > 2)
        rows.states["job_a"] = State.SUCCEEDED
        rows.down = False
        assert answer.result(SOON)


def test_a_stopped_waiter_lets_everybody_go() -> None:
    waiter = make_waiter(Rows(), max_waiters=2)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(waiter.wait, "job_a", SOON)
        until(lambda: waiter.num_waiters == 1)
        waiter.stop()
        assert answer.result(SOON)
    assert not waiter.wait("job_b", SOON)


def test_a_notification_ends_a_wait_without_another_read() -> None:
    rows, notifications = Rows(), Notifications(is_listening=True)
    waiter = make_waiter(rows, notifications)
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(waiter.wait, job_id, SOON) for job_id in ("job_a", "job_b", "job_b", "job_c")]
        until(lambda: waiter.num_waiters == 4 and not waiter._unread)
        num_queries = rows.num_queries
        waiter.ended("job_x job_b job_a")
        assert all(answer.result(SOON) for answer in answers[:3])
        assert not answers[3].done()
        assert rows.num_queries == num_queries
        waiter.ended("job_c")
        assert answers[3].result(SOON)
    assert notifications.num_starts == 4


def test_a_job_that_ended_just_before_the_wait_began_is_read_at_once() -> None:
    rows = Rows()
    rows.states["job_a"] = State.SUCCEEDED
    waiter = make_waiter(rows, Notifications(is_listening=True))
    began = time.monotonic()
    assert waiter.wait("job_a", SOON)
    assert time.monotonic() - began < SOON
    assert rows.num_queries == 1


def test_waits_that_begin_later_are_read_alone() -> None:
    rows = Rows()
    waiter = make_waiter(rows, Notifications(is_listening=True))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(waiter.wait, "job_a", SOON)
        until(lambda: rows.asked_for == {"job_a"})
        rows.asked_for.clear()
        second = pool.submit(waiter.wait, "job_b", SOON)
        until(lambda: rows.asked_for == {"job_b"})
        waiter.ended("job_a job_b")
        assert first.result(SOON)
        assert second.result(SOON)


def test_all_are_read_again_when_notifications_may_have_been_missed() -> None:
    rows = Rows()
    waiter = make_waiter(rows, Notifications(is_listening=True))
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(waiter.wait, "job_a", SOON)
        until(lambda: rows.asked_for == {"job_a"})
        rows.states["job_a"] = State.SUCCEEDED
        assert not answer.done()
        waiter.read_soon()
        assert answer.result(SOON)


def test_it_polls_slowly_while_notifications_come_and_fast_once_one_did_not() -> None:
    """Behind a pooler that drops them, the connection looks as if they came."""
    rows = Rows()
    waiter = make_waiter(
        rows, Notifications(is_listening=True), poll_seconds=0.05, unheard_poll_seconds=0.001
    )
    assert waiter._pace_seconds() == 0.05
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(waiter.wait, "job_a", SOON)
        until(lambda: not waiter._unread)
        rows.states["job_a"] = State.SUCCEEDED
        assert answer.result(SOON)
    assert waiter._pace_seconds() == 0.001
    waiter.ended("job_b")
    assert waiter._pace_seconds() == 0.05
