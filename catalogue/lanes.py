"""The two lanes of a job: interactive work runs before bulk work. A worker holds some jobs of each."""

from typing import Literal, get_args

Lane = Literal["interactive", "bulk"]
LANES: tuple[Lane, ...] = get_args(Lane)

MIN_SLOTS, MAX_SLOTS = 12, 128


def default_slots(max_rows: int) -> int:
    """The slots of a lane in a worker whose step batches have at most `max_rows` rows.

    A generation without guidance has one row, so as many jobs fill a step batch. Half as many again wait to
    join, or have their images encoded and uploaded meanwhile.
    """
    return min(MAX_SLOTS, max(MIN_SLOTS, max_rows + max_rows // 2))
