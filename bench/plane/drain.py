"""The job plane without a model: how fast a null worker empties its queues, beside a bare Celery worker.

A worker is stopped while its queue is filled, then it runs until all is done, timed by the database's clock.
The arms take turns: jobs with their upload, without it, as a CSV, and bare tasks in both of Celery's pools.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.figures import Figure, Share, figure_of
from bench.plane.bare import Commits, Cost, Puts, limit_of
from bench.plane.noop import publish, wait_until_empty
from bench.plane.picture import png
from bench.plane.submitted import by_csv, by_post, cancel
from bench.plane.system import Plane, plane_system, spent, stopped
from bench.workload import mixed_requests
from catalogue.lanes import default_slots
from engine.request import GenerationRequest

NUM_SLOTS = default_slots(16)
"""Of each lane of a null worker: what a worker of the shipped model has."""
POOLS = {"threads": NUM_SLOTS, "prefork": 2}
UPLOADING, KEEPING_NOTHING = 128, 192
"""The sides, and so the tiers, of the null worker that uploads and of the one that does not."""
NULL_WORKERS = {"null": ("--tiers", "sd"), "null-no-upload": ("--tiers", "hd", "--no-upload")}
EMPTY_SECONDS = 120.0


@dataclass(frozen=True)
class Amounts:
    """How much each arm does in a round."""

    num_rounds: int = 4
    num_jobs: int = 800
    num_tasks: int = 3000
    num_operations: int = 400
    bulk_seconds: float = 10.0
    """The longest that the bulk lane is watched in a round; jobs that are left are canceled."""


WHOLE, SHORT = Amounts(), Amounts(num_rounds=2, num_jobs=60, num_tasks=200, num_operations=40, bulk_seconds=4)


@dataclass
class Arms:
    """What each round has found: jobs a second, and CPU seconds a job by process."""

    uploading: list[float] = field(default_factory=list)
    keeping_nothing: list[float] = field(default_factory=list)
    bulk: list[float] = field(default_factory=list)
    tasks: dict[str, list[float]] = field(default_factory=lambda: {pool: [] for pool in POOLS})
    task_seconds: dict[str, list[float]] = field(default_factory=lambda: {pool: [] for pool in POOLS})
    job_seconds: list[dict[str, float]] = field(default_factory=list)
    puts: list[Cost] = field(default_factory=list)
    commits: list[Cost] = field(default_factory=list)

    @property
    def fastest_pool(self) -> str:
        """The pool in which Celery runs most tasks a second."""
        return max(self.tasks, key=lambda pool: statistics.median(self.tasks[pool]))


def measure(*, is_short: bool) -> Iterator[Figure]:
    """Jobs a second of a null worker, by lane, with and without uploads, beside bare tasks of Celery."""
    amounts = SHORT if is_short else WHOLE
    with tempfile.TemporaryDirectory() as folder, plane_system(Path(folder), devices=()) as plane:
        yield from figures_of(measure_arms(plane, amounts), len(os.sched_getaffinity(0)))


def figures_of(arms: Arms, num_cores: int) -> Iterator[Figure]:
    """The figures of these rounds."""
    pool = arms.fastest_pool
    tasks = arms.tasks[pool]
    beside = f"a bare Celery worker ({pool}) runs {statistics.median(tasks):.0f} tasks/s"
    yield figure_of(
        "null_vs_celery",
        _ratios(arms.keeping_nothing, tasks),
        0.35,
        None,
        f"without upload: {statistics.median(arms.keeping_nothing):.0f} jobs/s; {beside}",
    )
    parts = {
        "a task": statistics.median(arms.task_seconds[pool]),
        "S3": statistics.median(one.server for one in arms.puts),
        "a PUT": statistics.median(one.client for one in arms.puts),
        "a COMMIT": statistics.median(one.total for one in arms.commits),
    }
    limit = limit_of(num_cores, *parts.values())
    named = ", ".join(f"{name} {1000 * seconds:.2f}" for name, seconds in parts.items())
    yield figure_of(
        "null_vs_celery_upload",
        _ratios(arms.uploading, tasks),
        0.2,
        limit / statistics.median(tasks),
        f"{statistics.median(arms.uploading):.0f} jobs/s; the limit is {limit:.0f}: CPU ms of {named}",
    )
    costs = ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in _middle(arms.job_seconds).items())
    yield figure_of(
        "null_of_limit",
        [rate / limit for rate in arms.uploading],
        Share(0.8),
        1.0,
        f"{num_cores} cores by what a job cannot do without; CPU ms a job: {costs}",
    )
    yield figure_of(
        "bulk_feed",
        _ratios(arms.bulk, arms.uploading),
        0.9,
        1.0,
        f"the interactive lane; bulk {statistics.median(arms.bulk):.0f} jobs/s",
    )


def measure_arms(plane: Plane, amounts: Amounts) -> Arms:
    """Run all rounds on this system, which has no worker yet."""
    arms = Arms()
    puts, commits = Puts(plane, png()), Commits(plane)
    requests = {side: mixed_requests(amounts.num_jobs, side, seed=1) for side in (UPLOADING, KEEPING_NOTHING)}
    owner = {"CALOTYPE_BROKER_URL": str(plane.ready["broker_url"])}  # a worker reads our queues alone
    with ExitStack() as stack:
        for name, arguments in NULL_WORKERS.items():
            stack.enter_context(null_worker(plane, name, *arguments))
        for pool, number in POOLS.items():
            options = ("--pool", pool, "--concurrency", str(number))
            stack.enter_context(plane.beside(pool, "bench.plane.noop", *options, settings=owner))
        plane.wait_until_ready()
        for _ in range(amounts.num_rounds):
            rate, seconds = _drain(plane, "null", requests[UPLOADING])
            arms.uploading.append(rate)
            arms.job_seconds.append(seconds)
            arms.bulk.append(_feed(plane, requests[UPLOADING], amounts.bulk_seconds))
            rate, _ = _drain(plane, "null-no-upload", requests[KEEPING_NOTHING])
            arms.keeping_nothing.append(rate)
            for pool in POOLS:
                rate, task_seconds = _empty(plane, pool, amounts.num_tasks)
                arms.tasks[pool].append(rate)
                arms.task_seconds[pool].append(task_seconds)
            arms.puts.append(puts.measure(amounts.num_operations))
            arms.commits.append(commits.measure(amounts.num_operations))
    return arms


def null_worker(plane: Plane, name: str, *arguments: str) -> AbstractContextManager[int]:
    """A null worker that runs while the body runs, with the slots of a worker of the shipped model."""
    # A model that draws nothing needs no test, and its result is no other worker's.
    settings = {
        "CALOTYPE_SELF_TEST_SECONDS": "0.1",
        "CALOTYPE_PROFILES_DIR": str(plane.folder / "null-profiles"),
    }
    options = (*arguments, "--slots", str(NUM_SLOTS))
    return plane.beside(name, "bench.plane.null", *options, settings=settings)


def _drain(
    plane: Plane, worker: str, requests: Sequence[GenerationRequest]
) -> tuple[float, dict[str, float]]:
    """Submit these while the worker is stopped, then run it; return jobs a second, and CPU seconds a job."""
    with stopped(plane.pids[worker]):
        jobs = by_post(plane, requests)
        before, begun_at = plane.cpu(), plane.now()
    ends = jobs.wait_for_all(EMPTY_SECONDS)
    used = spent(before, plane.cpu())
    return jobs.num / (ends.last_at - begun_at), {name: each / jobs.num for name, each in used.items()}


def _feed(plane: Plane, requests: Sequence[GenerationRequest], seconds: float) -> float:
    """Upload these while the worker is stopped, then run it for so long at most; return jobs a second."""
    with stopped(plane.pids["null"]):
        jobs = by_csv(plane, requests)
        begun_at = plane.now()
    ends = jobs.wait(seconds)
    cancel(jobs, EMPTY_SECONDS)
    return ends.num / (ends.last_at - begun_at) if ends.num else 0.0


def _empty(plane: Plane, pool: str, num: int) -> tuple[float, float]:
    """Publish tasks while their worker is stopped, then run it; return tasks a second, and CPU a task."""
    url, names = plane.ready["broker_url"], (pool, "valkey")
    with stopped(plane.pids[pool]):
        publish(url, pool, num)
        before, begun_at = plane.cpu(), time.monotonic()
    wait_until_empty(url, pool, EMPTY_SECONDS)
    taken = time.monotonic() - begun_at
    used = spent(before, plane.cpu())
    return num / taken, sum(used[name] for name in names) / num


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def _middle(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each process, without those that take nothing."""
    middle = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    return {name: seconds for name, seconds in middle.items() if seconds >= 5e-5}
