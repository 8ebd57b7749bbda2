"""Strategies that share a core: each clock counts its own arm's work, and none is left undone."""

import time
from collections.abc import Generator

from bench.clock import WorkClock, in_turns


def work(seconds: float) -> None:
    """CPU seconds of this process."""
    ends_at = time.process_time() + seconds
    while time.process_time() < ends_at:
        pass


def test_a_clock_counts_the_work_of_its_own_arm_and_not_the_others() -> None:
    def part(clock: WorkClock, num_pieces: int) -> Generator[None, None, float]:
        begun_at = clock()
        for _ in range(num_pieces):
            work(0.02)
            yield
        return clock() - begun_at

    begun_at = time.process_time()
    short, long = in_turns([lambda clock: part(clock, 5), lambda clock: part(clock, 10)])
    assert 0.1 <= short < 0.15
    assert 0.2 <= long < 0.3
    assert time.process_time() - begun_at >= short + long


def test_parts_take_turns() -> None:
    turns: list[str] = []

    def part(name: str) -> Generator[None, None, str]:
        for _ in range(2):
            turns.append(name)
            work(0.01)
            yield
        return name

    assert in_turns([lambda _: part("a"), lambda _: part("b")], turn_seconds=0.01) == ["a", "b"]
    assert turns == ["a", "b", "a", "b"]


def test_skipped_time_passes_and_is_not_worked() -> None:
    def part(clock: WorkClock) -> Generator[None, None, float]:
        clock.skip_to(clock() + 1000)
        yield
        return clock()

    begun_at = time.process_time()
    (found,) = in_turns([part])
    assert found >= 1000
    assert time.process_time() - begun_at < 10
