"""The row of rolling restarts: every worker is replaced, one after the other, while clients submit."""

import time

from tests.chaos import worker_program
from tests.chaos.kills import NUM_WORKERS
from tests.chaos.report import Row
from tests.chaos.rows import Inflicted, Load, under_load
from tests.chaos.system import Kept, System


def restart_workers(system: System, number: int, seed: int, *, min_jobs: int = 0, mutant: str = "") -> Row:
    """Restart all workers in turn, so many times. No client may see any of it."""
    workers = [
        Kept(system, f"worker-{index}", worker_program.serve, "worker", lambda: None, mutant=mutant)
        for index in range(NUM_WORKERS)
    ]

    def restart_all(load: Load) -> Inflicted:
        taken = []
        for _ in range(number):
            begun_at = time.monotonic()
            for worker in load.programs:
                worker.restart()
            taken.append(round(time.monotonic() - begun_at, 2))
        failures = [failure for one in load.clients.submissions for failure in one.failures]
        assert not failures, f"clients saw {failures}"
        return Inflicted(number, details={"seconds of each": taken})

    return under_load(
        "rolling restart",
        system,
        seed,
        number,
        workers,
        restart_all,
        min_jobs=min_jobs,
        may_charge=False,
    )
