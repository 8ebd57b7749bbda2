"""A worker ends by itself once, in order, when it has run enough jobs or holds too much memory."""

import threading
from typing import Any

from tasks.process_end import Recycling, resident_bytes

ANY: Any = None
"""What it is told of a job; it only counts."""


class Ends:
    """Counts how often the worker is told to end."""

    def __init__(self) -> None:
        self.num = 0

    def __call__(self) -> None:
        self.num += 1


def recycling(ends: Ends, *, max_jobs: int = 0, max_memory_bytes: int = 0, held: int = 100) -> Recycling:
    return Recycling(
        max_jobs=max_jobs, max_memory_bytes=max_memory_bytes, end=ends, memory_bytes=lambda: held
    )


def test_a_worker_ends_once_after_so_many_jobs() -> None:
    ends = Ends()
    counted = recycling(ends, max_jobs=3)
    for expected in (0, 0, 1, 1, 1):
        counted.settled(ANY, ANY)
        assert ends.num == expected


def test_many_jobs_that_end_at_once_end_it_once() -> None:
    ends = Ends()
    counted = recycling(ends, max_jobs=8)
    threads = [threading.Thread(target=counted.settled, args=(ANY, ANY)) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends.num == 1


def test_a_worker_ends_when_it_holds_more_memory_than_it_may() -> None:
    ends = Ends()
    recycling(ends, max_memory_bytes=100).look()
    assert ends.num == 0
    recycling(ends, max_memory_bytes=99).look()
    assert ends.num == 1


def test_without_limits_a_worker_goes_on() -> None:
    ends = Ends()
    unlimited = recycling(ends, held=2**50)
    for _ in range(100):
        unlimited.settled(ANY, ANY)
    unlimited.look()
    assert ends.num == 0
    assert unlimited.can_begin()


def test_a_worker_that_is_too_large_before_its_first_job_does_not_begin() -> None:
    """It would end after each job, and its supervisor would start it again and again."""
    ends = Ends()
    assert not recycling(ends, max_memory_bytes=99).can_begin()
    assert ends.num == 0


def test_the_memory_of_this_process_is_read() -> None:
    assert 2**20 < resident_bytes() < 2**40
