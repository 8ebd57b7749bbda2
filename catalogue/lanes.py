"""The two lanes of a job: interactive work runs before bulk work."""

from typing import Literal, get_args

Lane = Literal["interactive", "bulk"]
LANES: tuple[Lane, ...] = get_args(Lane)
