"""The amount of work in each part of the engine's benchmark: for figures, or to check that it runs."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Amounts:
    """The number of requests of each run; `seeds` counts runs."""

    saturating: dict[int, int]  # by side
    arrivals: dict[int, int]  # by side
    tuning: dict[int, int]  # by side
    goodput: int
    fairness: int
    simulated: int
    schedules: int
    captions: int
    solo_repeats: int
    segment_seconds: float
    profile_seconds: float
    exchange_rounds: int
    seeds: Sequence[int] = (1, 2, 3)


WHOLE = Amounts(
    saturating={128: 70, 192: 40},
    arrivals={128: 180, 192: 64},
    tuning={128: 60, 192: 30},
    goodput=50,
    fairness=120,
    simulated=20_000,
    schedules=5,
    captions=150,
    solo_repeats=2,
    segment_seconds=2.5,
    profile_seconds=10,
    exchange_rounds=15,
)
QUICK = Amounts(
    saturating={128: 30, 192: 20},
    arrivals={128: 15, 192: 8},
    tuning={128: 6, 192: 4},
    goodput=10,
    fairness=15,
    simulated=1000,
    schedules=1,
    captions=4,
    solo_repeats=1,
    segment_seconds=1,
    profile_seconds=0,
    exchange_rounds=1,
    seeds=(1,),
)
