"""S34: so many requests run and so many wait; one that only waits lends its place; a hang is noticed."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from tests.front_threads import threads_of
from tests.on_a_loop import on_a_loop
from web.front.limits import Limits
from web.front.refusals import Busy
from web.front.threads import Threads

SOON = 60.0
LIMITS = Limits()


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not holds():
            await asyncio.sleep(0.002)


def held(threads: Threads, go: threading.Event) -> "asyncio.Task[bool]":
    """A piece of work that runs until it is let go."""
    return asyncio.create_task(threads.run(lambda: go.wait(SOON)))


@on_a_loop
async def test_S34_what_finds_no_place_waits_and_what_finds_no_room_to_wait_is_refused() -> None:
    threads, go = threads_of(2, 1), threading.Event()
    work = [held(threads, go) for _ in range(3)]
    await until(lambda: (threads.num_running, threads.num_queued) == (2, 1))
    with pytest.raises(Busy):
        await threads.run(lambda: None)
    begun = asyncio.create_task(threads.run(lambda: "next piece", begun=True))
    go.set()
    assert await asyncio.gather(*work) == [True, True, True]
    assert await begun == "next piece"
    await until(lambda: threads.num_running == 0)


@on_a_loop
async def test_S34_a_queue_that_moves_may_be_long_and_one_that_does_not_is_full() -> None:
    clock = Clock()
    limits = Limits(num_threads=1, max_queued=3, quick_seconds=1, max_quick_queued=24)
    threads, go = Threads(limits, clock=clock), threading.Event()
    most = limits.max_quick_queued
    work = [held(threads, go) for _ in range(1 + most)]
    await until(lambda: (threads.num_running, threads.num_queued) == (1, most))
    with pytest.raises(Busy, match="full"):
        await threads.run(lambda: None)
    clock.now += 1
    go.set()
    assert await asyncio.gather(*work) == [True] * (1 + most)
    go.clear()
    work = [held(threads, go) for _ in range(4)]
    await until(lambda: threads.num_queued == 3)
    clock.now += 1
    with pytest.raises(Busy, match="full"):
        await threads.run(lambda: None)
    go.set()
    await asyncio.gather(*work)
    await until(lambda: threads.num_running == 0)


@on_a_loop
async def test_S34_what_has_waited_too_long_is_refused_and_an_answer_that_has_begun_goes_on() -> None:
    clock = Clock()
    threads, go = threads_of(1, 4, clock), threading.Event()
    first = held(threads, go)
    await until(lambda: threads.num_running == 1)
    late = asyncio.create_task(threads.run(lambda: "late"))
    begun = asyncio.create_task(threads.run(lambda: "next piece", begun=True))
    await until(lambda: threads.num_queued == 2)
    clock.now += LIMITS.max_queue_seconds + 1
    go.set()
    assert await first
    with pytest.raises(Busy, match="no thread was free"):
        await late
    assert await begun == "next piece"
    await until(lambda: threads.num_running == 0)


@on_a_loop
async def test_S34_who_only_waits_lends_its_place() -> None:
    threads, go = threads_of(1, 0), threading.Event()

    def wait() -> str:
        with threads.lent():
            go.wait(SOON)
        return "waited"

    waiting = asyncio.create_task(threads.run(wait))
    await until(lambda: threads.num_lent == 1)
    assert await threads.run(lambda: "another") == "another"
    go.set()
    assert await waiting == "waited"
    await until(lambda: (threads.num_running, threads.num_lent) == (0, 0))


@on_a_loop
async def test_S34_an_error_is_its_callers() -> None:
    threads = threads_of(1, 0)
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 / 0)
    await until(lambda: threads.num_running == 0)
    assert await threads.run(lambda: 1) == 1


@on_a_loop
async def test_S34_only_threads_that_are_all_taken_and_do_not_move_are_stuck() -> None:
    clock = Clock()
    threads, go, other = threads_of(2, 4, clock), threading.Event(), threading.Event()
    first = held(threads, go)
    await until(lambda: threads.num_running == 1)
    clock.now += 100
    assert threads.stuck_seconds() == 0
    second = held(threads, other)
    await until(lambda: threads.num_running == 2)
    clock.now += 70
    assert threads.stuck_seconds() == 70
    other.set()
    await second
    await until(lambda: threads.num_running == 1)
    assert threads.stuck_seconds() == 0
    go.set()
    await first
