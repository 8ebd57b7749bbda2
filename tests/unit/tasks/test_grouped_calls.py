"""Calls of many threads are passed on in groups, and each caller gets its own result or error."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from itertools import islice

import pytest

from tasks.grouped_calls import GroupedCalls


class Doubler:
    """Doubles numbers in groups; its first call waits until it is told to go on."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.groups.append(sorted(numbers))
        self.has_begun.set()
        assert self.may_go_on.wait(30)
        if 13 in numbers:
            raise ValueError("13 cannot be doubled")
        if 14 in numbers:
            raise ConnectionError("the server is down")
        return [2 * number for number in numbers]


def call_together(
    numbers: Sequence[int], max_items: int = 64
) -> tuple[Doubler, list[int], dict[int, "Future[int]"]]:
    """Call with 0, and with `numbers` while that call runs; returns the groups that followed the first."""
    doubler = Doubler()
    grouped = GroupedCalls(doubler, shared_errors=(ConnectionError,), max_items=max_items)
    with ThreadPoolExecutor(len(numbers) + 1) as pool:
        first = pool.submit(grouped, 0)
        assert doubler.has_begun.wait(30)
        futures = {number: pool.submit(grouped, number) for number in numbers}
        while len(grouped.waiting) < len(numbers):
            threading.Event().wait(0.001)
        doubler.may_go_on.set()
        assert first.result() == 0
    return doubler, doubler.groups[0], futures


def test_a_caller_alone_is_called_alone_and_at_once() -> None:
    doubler = Doubler()
    doubler.may_go_on.set()
    assert GroupedCalls(doubler, shared_errors=())(3) == 6
    assert doubler.groups == [[3]]


def test_callers_that_arrive_during_a_call_share_the_next_one() -> None:
    doubler, first, futures = call_together([1, 2, 3, 4])
    assert (first, doubler.groups[1:]) == ([0], [[1, 2, 3, 4]])
    assert {number: future.result() for number, future in futures.items()} == {1: 2, 2: 4, 3: 6, 4: 8}


def test_a_group_has_no_more_items_than_it_may() -> None:
    doubler, _, futures = call_together([1, 2, 3, 4, 5], max_items=2)
    assert max(map(len, doubler.groups)) == 2
    assert {number: future.result() for number, future in futures.items()} == {n: 2 * n for n in range(1, 6)}


def test_an_item_that_fails_does_not_affect_the_others_of_its_group() -> None:
    _, _, futures = call_together([1, 13, 2])
    with pytest.raises(ValueError, match="13"):
        futures[13].result()
    assert (futures[1].result(), futures[2].result()) == (2, 4)


def test_an_error_that_concerns_all_is_not_met_again_for_each() -> None:
    doubler, _, futures = call_together([1, 14, 2])
    for future in futures.values():
        with pytest.raises(ConnectionError):
            future.result()
    assert len(doubler.groups) == 2


def test_a_caller_whose_result_is_there_does_not_wait_for_the_next_call() -> None:
    has_begun, may_go_on = threading.Semaphore(0), threading.Semaphore(0)

    def call(numbers: Sequence[int]) -> list[int]:
        has_begun.release()
        assert may_go_on.acquire(timeout=30)
        return list(numbers)

    grouped = GroupedCalls(call, shared_errors=(), max_items=4)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(grouped, 0)
        assert has_begun.acquire(timeout=30)
        rest = [pool.submit(grouped, number) for number in range(1, 9)]
        while len(grouped.waiting) < 8:
            threading.Event().wait(0.001)
        may_go_on.release(2)  # the first call, and that of four items, but not the last one
        try:
            answered = list(islice(as_completed(rest, 10), 4))
        finally:
            may_go_on.release()
        assert first.result(30) == 0
        assert len({future.result(30) for future in answered}) == 4
        assert {future.result(30) for future in rest} == set(range(1, 9))
