"""The row of jobs that fail or take their worker with them, while the jobs beside them must not suffer."""

import random
import threading

from tests.chaos import worker_program
from tests.chaos.painting import CULPRITS
from tests.chaos.report import Row
from tests.chaos.rows import Inflicted, Load, under_load
from tests.chaos.system import START_SECONDS, Kept, System

EXPECTED = {
    "out of memory": "out_of_memory",
    "not a number": "numeric_error",
    "hang": "worker_lost",
    "poison": "worker_lost",
    "lose the device": "worker_lost",
}
assert set(EXPECTED) == set(CULPRITS)
SHARE = 0.1
SECONDS_EACH = 30.0
NUM_WORKERS = 4
"""Most of the time, some of them wait for their watchdog or start again."""


class Prompts:
    """So many of each culprit, in random order among ordinary prompts; safe to share between threads."""

    def __init__(self, number: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._left = [culprit for culprit in CULPRITS for _ in range(number)]
        self._rng.shuffle(self._left)
        self._lock = threading.Lock()

    def next(self) -> str:
        """The prompt of the next job."""
        with self._lock:
            is_culprit = self._left and self._rng.random() < SHARE
            return self._left.pop() if is_culprit else "a picture"

    @property
    def are_used_up(self) -> bool:
        """Whether every culprit was submitted."""
        return not self._left


def run_culprits(system: System, number: int, seed: int, *, min_jobs: int = 0) -> Row:
    """Submit so many of each culprit among other jobs. Only they may fail, each with its own code."""
    prompts = Prompts(number, seed)
    workers = [
        Kept(system, f"worker-{index}", worker_program.serve, "worker", lambda: None, may_end=True)
        for index in range(NUM_WORKERS)
    ]

    def wait_for_all(load: Load) -> Inflicted:
        seconds = START_SECONDS + number * len(CULPRITS) * SECONDS_EACH
        load.wait_until(lambda: prompts.are_used_up, seconds, "every culprit is submitted")
        return Inflicted(number, details={"culprits": len(CULPRITS) * number})

    return under_load(
        "jobs that fail",
        system,
        seed,
        number,
        workers,
        wait_for_all,
        min_jobs=min_jobs,
        may_charge=False,
        next_prompt=prompts.next,
        expected=EXPECTED,
        settle_seconds=START_SECONDS + number * len(CULPRITS) * SECONDS_EACH / NUM_WORKERS,
    )
