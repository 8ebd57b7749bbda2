"""The promise about slots: a full lane says so, and another lane's slots are its own."""

from tasks.consumer import Slots


def test_a_lane_is_told_full_at_its_last_slot_and_free_at_the_first_given_back() -> None:
    told: list[str] = []
    slots = Slots(
        {"interactive": 1, "bulk": 2},
        on_full=lambda lane: told.append(f"{lane} full"),
        on_free=lambda lane: told.append(f"{lane} free"),
    )
    slots.take("bulk")
    assert told == []
    slots.take("bulk")
    slots.give_back("bulk")
    slots.give_back("bulk")
    assert told == ["bulk full", "bulk free"]


def test_a_bell_that_was_under_way_when_its_lane_filled_up_is_counted_and_frees_nothing_early() -> None:
    told: list[str] = []
    slots = Slots({"interactive": 1, "bulk": 1}, on_full=told.append, on_free=told.append)
    slots.take("bulk")
    slots.take("bulk")
    slots.give_back("bulk")
    assert told == ["bulk"]
    slots.give_back("bulk")
    assert told == ["bulk", "bulk"]
    assert (slots.taken("interactive"), slots.taken("bulk")) == (0, 0)
