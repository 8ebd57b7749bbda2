"""The promise about slots: a full lane says so, and a worker polls at a pace that its jobs set."""

import pytest

from engine.policy.free_workers import pause_seconds
from tasks.consumer import SHARE_AFTER_A_MESSAGE, Pace, Slots


def test_a_lane_is_full_from_its_last_slot_to_the_first_that_is_given_back() -> None:
    told: list[bool] = []
    slots = Slots(2, on_free=lambda: told.append(slots.are_taken))
    slots.take()
    assert not slots.are_taken
    slots.take()
    assert slots.are_taken
    slots.give_back()
    slots.give_back()
    assert told == [False]


def test_an_empty_lane_says_so() -> None:
    told: list[str] = []
    slots = Slots(3, on_free=lambda: told.append("free"), on_empty=lambda: told.append("empty"))
    for _ in range(3):
        slots.take()
    for _ in range(3):
        slots.give_back()
    assert told == ["free", "empty"]


def test_a_message_that_was_under_way_when_its_lane_filled_up_is_counted_and_frees_nothing_early() -> None:
    told: list[bool] = []
    slots = Slots(1, on_free=lambda: told.append(slots.are_taken))
    slots.take()
    slots.take()
    slots.give_back()
    assert slots.are_taken
    assert told == []
    slots.give_back()
    assert told == [False]
    assert slots.num_taken == 0


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_worker_with_jobs_pauses_after_a_poll_and_one_without_never() -> None:
    clock = Clock()
    pace = Pace(clock=clock)
    assert pace.seconds_until_poll(3) == 0.0, "it has not polled yet"
    pace.note_poll()
    assert pace.seconds_until_poll(0) == 0.0
    assert pace.seconds_until_poll(3) == pytest.approx(pause_seconds(3))
    clock.now += 1.01 * pause_seconds(1)
    assert pace.seconds_until_poll(1) == 0.0
    assert 0 < pace.seconds_until_poll(2) < pause_seconds(2)


def test_a_few_messages_in_a_row_are_shared_and_more_are_taken_at_once() -> None:
    clock = Clock()
    pace = Pace(clock=clock)
    pauses = []
    for num_jobs in range(1, 5):
        pace.note_poll()
        pace.note_message()
        pauses.append(pace.seconds_until_poll(num_jobs))
        clock.now += 1
    shared = [SHARE_AFTER_A_MESSAGE * pause_seconds(num_jobs) for num_jobs in (1, 2)]
    assert pauses == pytest.approx([*shared, 0.0, 0.0])
    pace.note_poll()
    assert pace.seconds_until_poll(4) == pytest.approx(pause_seconds(4)), "there was none"
    clock.now += 1
    pace.note_poll()
    pace.note_message()
    assert pace.seconds_until_poll(1) == pytest.approx(shared[0])


def test_messages_that_piled_up_while_the_lane_was_full_are_taken_at_once() -> None:
    pace = Pace(clock=Clock())
    pace.note_poll()
    pace.hurry()
    assert pace.seconds_until_poll(5) == 0.0
    for _ in range(3):
        pace.note_poll()
        pace.note_message()
        assert pace.seconds_until_poll(5) == 0.0
