"""The rows of kills: workers and the API end by SIGKILL at every point that the code names."""

import random
import socket
import threading
from collections import Counter
from collections.abc import Sequence

from tests.chaos import api_program, worker_program
from tests.chaos.crashes import API_POINTS, WORKER_POINTS, Crash, drawn
from tests.chaos.recovery import recoveries
from tests.chaos.report import Row
from tests.chaos.rows import Inflicted, Load, under_load
from tests.chaos.system import START_SECONDS, Death, Kept, System

NUM_WORKERS = 2


class Crashes:
    """The crashes of a row, each given to one process."""

    def __init__(self, points: Sequence[str], number: int, seed: int) -> None:
        rng = random.Random(seed)
        self.number = number
        self._left = [drawn(points, index, rng) for index in reversed(range(number))]
        self._lock = threading.Lock()

    def next(self) -> Crash | None:
        """The next one; None if there is none left."""
        with self._lock:
            return self._left.pop() if self._left else None

    def all_happen(self, load: Load) -> Inflicted:
        """Wait until all have happened."""
        seconds = START_SECONDS * (2 + self.number)
        load.wait_until(lambda: len(_crashed(load)) >= self.number, seconds, f"{self.number} crashes")
        crashed = _crashed(load)
        by_point = Counter(death.crash.point for death in crashed if death.crash is not None)
        died = {death.boot_id: death.at for death in crashed}
        return Inflicted(len(crashed), recoveries(load.system, died), {"by point": dict(by_point)})


def kill_workers(system: System, number: int, seed: int, *, min_jobs: int = 0) -> Row:
    """Kill workers at every boundary of a job, and take back what they held as a supervisor does."""
    crashes = Crashes(WORKER_POINTS, number, seed)
    workers = [
        Kept(system, f"worker-{index}", worker_program.serve, "worker", crashes.next)
        for index in range(NUM_WORKERS)
    ]
    return under_load("worker killed", system, seed, number, workers, crashes.all_happen, min_jobs=min_jobs)


def kill_apis(system: System, number: int, seed: int, *, min_jobs: int = 0) -> Row:
    """Kill the API between a request and its answer, while clients repeat what was not answered."""
    crashes, port = Crashes(API_POINTS, number, seed), _free_port()
    api = Kept(system, "api", api_program.serve, "api", crashes.next, port=port, takes_back=False)
    worker = Kept(system, "worker-0", worker_program.serve, "worker", lambda: None)
    return under_load(
        "API killed",
        system,
        seed,
        number,
        [api, worker],
        crashes.all_happen,
        url=f"http://127.0.0.1:{port}",
        min_jobs=min_jobs,
    )


def _crashed(load: Load) -> list[Death]:
    return [death for one in load.programs for death in one.deaths if death.crash is not None]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
