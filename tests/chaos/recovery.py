"""The rows of recovery, at the periods of production: how soon a dead worker's jobs are claimed again."""

import time
from collections.abc import Sequence

from tests.chaos import worker_program
from tests.chaos.report import Row
from tests.chaos.rows import Inflicted, Load, under_load
from tests.chaos.system import Kept, System

NUM_WORKERS = 4
PAUSE_SECONDS = 3.0
SETTLE_SECONDS = 150.0


def kill_supervised(system: System, number: int, seed: int, *, min_jobs: int = 0) -> Row:
    """Kill workers whose supervisor sees it and takes back their jobs."""
    return _kill_in_turn("supervised worker killed", system, number, seed, min_jobs, takes_back=True)


def lose_hosts(system: System, number: int, seed: int, *, min_jobs: int = 0) -> Row:
    """Kill workers whose whole host is gone, so that nothing but the end of their leases tells."""
    return _kill_in_turn("host lost", system, number, seed, min_jobs, takes_back=False)


def _kill_in_turn(
    fault: str, system: System, number: int, seed: int, min_jobs: int, *, takes_back: bool
) -> Row:
    workers = [
        Kept(
            system,
            f"worker-{index}",
            worker_program.serve,
            "worker",
            lambda: None,
            takes_back=takes_back,
            may_end=True,
        )
        for index in range(NUM_WORKERS)
    ]

    def kill_all(load: Load) -> Inflicted:
        killed: dict[str, float] = {}
        for index in range(number):
            time.sleep(PAUSE_SECONDS)
            boot_id, at = load.programs[index % NUM_WORKERS].kill()
            killed[boot_id] = at
        load.wait_until(lambda: not _held(system, list(killed)), SETTLE_SECONDS, "their jobs are taken back")
        time.sleep(PAUSE_SECONDS)
        return Inflicted(len(killed), recoveries(system, killed))

    return under_load(
        fault,
        system,
        seed,
        number,
        workers,
        kill_all,
        min_jobs=min_jobs,
        settle_seconds=SETTLE_SECONDS,
    )


def _held(system: System, boot_ids: Sequence[str]) -> bool:
    query = "SELECT id FROM jobs WHERE state = 'running' AND lease_boot_id = ANY(%s) LIMIT 1"
    return bool(system.rows(query, list(boot_ids)))


def recoveries(system: System, killed: dict[str, float]) -> list[float]:
    """Seconds from the death of a process, by boot id, to the next claim of each job taken back from it."""
    claimed = system.rows(
        """SELECT right(reaped.worker, 8) AS boot, extract(epoch FROM min(claimed.created_at))::float8 AS at
             FROM job_events AS reaped
             JOIN job_events AS claimed ON claimed.job_id = reaped.job_id AND claimed.transition = 'claim'
                                       AND claimed.id > reaped.id
            WHERE reaped.transition = 'reap' AND right(reaped.worker, 8) = ANY(%s)
            GROUP BY reaped.id, reaped.worker""",
        [boot_id[:8] for boot_id in killed],
    )
    died_at = {boot_id[:8]: at for boot_id, at in killed.items()}
    return [row.at - died_at[row.boot] for row in claimed]
