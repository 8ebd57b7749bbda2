"""The promise about slots that nobody configured: step batches can be full, and there is a bound."""

import pytest

from catalogue.lanes import MAX_SLOTS, MIN_SLOTS, default_slots


@pytest.mark.parametrize(
    ("max_rows", "num_slots"), [(1, MIN_SLOTS), (8, 12), (16, 24), (64, 96), (512, MAX_SLOTS)]
)
def test_the_default_slots_of_a_lane_fill_a_step_batch_with_jobs_to_spare(
    max_rows: int, num_slots: int
) -> None:
    assert default_slots(max_rows) == num_slots
