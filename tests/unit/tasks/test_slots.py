"""The promise about slots: a full lane says so, and a worker polls at a pace that its jobs set."""

import pytest

from engine.policy.free_workers import pause_seconds
from tasks.consumer import Pace, Slots


def test_a_lane_is_full_from_its_last_slot_to_the_first_that_is_given_back() -> None:
    told: list[bool] = []
    slots = Slots(2, on_free=lambda: told.append(slots.are_taken))
    slots.take()
    assert not slots.are_taken
    slots.take()
    assert slots.are_taken
    slots.give_back()
    slots.give_back()
    assert told == [False, False], "when one got free, and when it was empty"


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


def test_a_poll_that_found_a_message_is_followed_by_another_at_once() -> None:
    pace = Pace(clock=Clock())
    pace.note_poll()
    pace.hurry()
    assert pace.seconds_until_poll(5) == 0.0
