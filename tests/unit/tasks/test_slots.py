"""The promise about slots: a full lane says so, and says when it is not full any more."""

from tasks.consumer import Slots


def test_a_lane_is_told_full_at_its_last_slot_and_free_at_the_first_given_back() -> None:
    told: list[str] = []
    slots = Slots(2, on_full=lambda: told.append("full"), on_free=lambda: told.append("free"))
    slots.take()
    assert told == []
    slots.take()
    slots.give_back()
    slots.give_back()
    assert told == ["full", "free"]


def test_a_bell_that_was_under_way_when_its_lane_filled_up_is_counted_and_frees_nothing_early() -> None:
    told: list[str] = []
    slots = Slots(1, on_full=lambda: told.append("full"), on_free=lambda: told.append("free"))
    slots.take()
    slots.take()
    slots.give_back()
    assert told == ["full"]
    slots.give_back()
    assert told == ["full", "free"]
    assert slots.num_taken == 0
