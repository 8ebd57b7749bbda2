"""The row of workers that are stopped for longer than their lease, and then go on."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence

from tests.chaos import worker_program
from tests.chaos.crashes import PAUSE_POINTS, Crash, drawn
from tests.chaos.kills import NUM_WORKERS
from tests.chaos.report import Row
from tests.chaos.rows import Inflicted, Load, under_load
from tests.chaos.system import START_SECONDS, Kept, System

STEP_SECONDS = 0.05
"""Long, so that a job still runs elsewhere when the worker that was stopped writes."""


def pause_workers(
    system: System,
    number: int,
    seed: int,
    *,
    min_jobs: int = 0,
    mutant: str = "",
    points: Sequence[str] = PAUSE_POINTS,
) -> Row:
    """Stop workers by SIGSTOP at a boundary until others have claimed their jobs, then let them go on."""
    rng, places = random.Random(seed), itertools.count()

    def num_pauses() -> int:
        return sum(len(one.pauses) for one in workers)

    def next_pause() -> Crash | None:
        """Another one, until enough have happened: a worker that held no job when it stopped counts not."""
        return None if num_pauses() >= number else drawn(points, next(places), rng, is_pause=True)

    def all_happen(load: Load) -> Inflicted:
        seconds = START_SECONDS * (2 + number)
        load.wait_until(lambda: num_pauses() >= number, seconds, f"{number} pauses")
        by_point = Counter(point for one in workers for point in one.pauses)
        return Inflicted(by_point.total(), details={"by point": dict(by_point)})

    workers = [
        Kept(
            system,
            f"worker-{index}",
            worker_program.serve,
            "worker",
            next_pause,
            mutant=mutant,
            step_seconds=STEP_SECONDS,
            may_end=True,  # on a slow machine a pause may outlast its watchdogs; it is not counted then
        )
        for index in range(NUM_WORKERS + 1)
    ]
    return under_load(
        "worker stopped past its lease",
        system,
        seed,
        number,
        workers,
        all_happen,
        min_jobs=min_jobs,
        may_charge=False,
    )
