"""Which of the workers with a free slot gets a job, and how long a worker pauses between two polls.

The pause is the service's own (`tasks.consumer`), so that a simulation hands out jobs as the service does. It
knows of a worker how many interactive jobs it holds, and nothing of queues or devices.
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar

W = TypeVar("W")
PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.02, 0.1


def pause_seconds(num_jobs: int) -> float:
    """How long a worker that holds so many interactive jobs pauses between two polls that find none.

    No pause without a job: then it waits in the broker, which gives it a message before others ask for one.
    The more it holds, the more often another worker asks first (ADR 0036).
    """
    return min(num_jobs * PAUSE_SECONDS, MAX_PAUSE_SECONDS)


FreeByJobs = Mapping[int, Sequence[W]]
"""Workers with a free slot of a lane, by the interactive jobs that they hold; no number without a worker."""


class Choose(Protocol):
    """Which worker gets a job that has just been dispatched, and after how long."""

    def __call__(self, free: FreeByJobs[W], chance: random.Random) -> tuple[W, float]:
        """Choose one of at least one; the seconds until it finds the job."""


def first_to_poll(free: FreeByJobs[W], chance: random.Random) -> tuple[W, float]:
    """As the service does: one without jobs, or else the one that polls first.

    Each is at a random moment of its pause when the job is dispatched. Of several that wait in the broker,
    the one that has waited longest gets it, which is chance: each waits anew every `tasks.app.POLL_SECONDS`.
    """
    if 0 in free:
        return chance.choice(free[0]), 0.0

    def wait_seconds(num_jobs: int) -> float:
        """Until the first of those with so many jobs polls: the least of uniform times up to the pause."""
        return pause_seconds(num_jobs) * (1 - math.pow(chance.random(), 1 / len(free[num_jobs])))

    seconds, num_jobs = min((wait_seconds(each), each) for each in free)
    return chance.choice(free[num_jobs]), seconds


def any_free(free: FreeByJobs[W], chance: random.Random) -> tuple[W, float]:
    """Any, whatever it holds: not what the service does, to find what that would cost."""
    [of_one_load] = chance.choices(list(free.values()), [len(workers) for workers in free.values()])
    return chance.choice(of_one_load), 0.0


def fewest_jobs(free: FreeByJobs[W], chance: random.Random) -> tuple[W, float]:
    """One of those with the fewest jobs: not what the service does, to find what that would save."""
    return chance.choice(free[min(free)]), 0.0


class FreeWorkers(Generic[W]):
    """The workers of one kind with a free slot of one lane: a change moves at most two of them."""

    def __init__(self) -> None:
        self.by_jobs: dict[int, list[W]] = {}
        self._place: dict[W, tuple[int, int]] = {}

    def add(self, worker: W, num_jobs: int) -> None:
        """Add a worker, which is not there, as one that holds so many jobs."""
        workers = self.by_jobs.setdefault(num_jobs, [])
        self._place[worker] = num_jobs, len(workers)
        workers.append(worker)

    def discard(self, worker: W) -> None:
        """Take a worker out, if it is there."""
        found = self._place.pop(worker, None)
        if found is None:
            return
        num_jobs, place = found
        workers = self.by_jobs[num_jobs]
        last = workers.pop()
        if last is not worker:
            workers[place] = last
            self._place[last] = found
        if not workers:
            del self.by_jobs[num_jobs]


def joined(found: Sequence[FreeByJobs[W]]) -> FreeByJobs[W]:
    """The free workers of several kinds."""
    if len(found) == 1:
        return found[0]
    together: dict[int, list[W]] = {}
    for free in found:
        for num_jobs, workers in free.items():
            together.setdefault(num_jobs, []).extend(workers)
    return together
