"""The promise about slots: a full lane says so, and reports when it is not full any more."""

from tasks.consumer import Slots


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
