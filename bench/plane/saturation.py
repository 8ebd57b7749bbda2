"""The shipped model with work always waiting: what the service takes beside the model, by POST and by CSV.

The same requests are submitted one by one, given to plain diffusers in batches, and as a CSV, in turns. CPU
seconds are read from every process; the engine's are those of the busiest thread of a worker.
"""

import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from bench.figures import Figure, figure_of
from bench.plane.pipeline import pipelines
from bench.plane.submitted import Submitted, by_csv, by_post
from bench.plane.system import Plane, busiest, plane_system, spent, thread_seconds
from bench.workload import mixed_requests
from engine.policy.bulk_limits import EXPECTED_SECONDS
from engine.request import GenerationRequest

SIDE = 128
FULL_SHARE = 0.75
"""Rows of a step batch are counted until this share has ended, since at the end every batch is half empty."""
MAX_SECONDS = 600.0
LEAST_IMAGE_SECONDS = 0.19
BARS_MS = {"post": 12.0, "csv": 8.0}


@dataclass(frozen=True)
class Amounts:
    """Rounds, and images of each arm in a round."""

    num_rounds: int = 3
    num_images: int = 160
    num_warming: int = 16


WHOLE, SHORT = Amounts(), Amounts(num_rounds=1, num_images=16, num_warming=2)


@dataclass(frozen=True)
class Arm:
    """One arm of one round: CPU seconds an image by process, of the engines too, and rows a step batch."""

    by_process: Mapping[str, float]
    engine: float
    rows: float
    images_per_second: float

    @property
    def total(self) -> float:
        """CPU seconds of an image."""
        return sum(self.by_process.values())

    @property
    def service(self) -> float:
        """CPU seconds of an image beside the engine."""
        return self.total - self.engine


def measure(*, is_short: bool) -> Iterator[Figure]:
    """CPU of the service an image, by POST and by CSV; all CPU beside plain diffusers; rows a step batch."""
    amounts = SHORT if is_short else WHOLE
    cores = sorted(os.sched_getaffinity(0))[:2]
    arms: dict[str, list[Arm]] = {"post": [], "csv": []}
    bare: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        plane_system(Path(folder)) as plane,
        pipelines(cores) as plain,
    ):
        warming = mixed_requests(amounts.num_warming, SIDE, seed=0)
        for submit in (by_post, by_csv):
            saturate(plane, submit, warming)
        plain.batches(warming)
        for number in range(amounts.num_rounds):
            requests = mixed_requests(amounts.num_images, SIDE, seed=number + 1)
            arms["post"].append(saturate(plane, by_post, requests))
            ended_at = time.monotonic()
            bare.append(plain.batches(requests))
            # Until then step batches of bulk work alone are kept small, for interactive work that may come.
            time.sleep(max(0.0, EXPECTED_SECONDS - (time.monotonic() - ended_at)))
            arms["csv"].append(saturate(plane, by_csv, requests))
    yield from figures_of(arms, bare)


def figures_of(arms: Mapping[str, Sequence[Arm]], bare: Sequence[float]) -> Iterator[Figure]:
    """The figures of these rounds; `bare` is CPU seconds an image of plain diffusers."""
    for name, rounds in arms.items():
        by_process = {
            each: statistics.median(one.by_process[each] for one in rounds) for each in rounds[0].by_process
        }
        listed = ", ".join(
            f"{each} {1000 * seconds:.1f}" for each, seconds in by_process.items() if seconds > 5e-5
        )
        engine = statistics.median(one.engine for one in rounds)
        yield figure_of(
            f"service_cpu_ms_{name}",
            [1000 * one.service for one in rounds],
            BARS_MS[name],
            None,
            f"CPU ms an image: {listed}; of the workers' the engine {1000 * engine:.0f}",
            is_at_most=True,
        )
    for name, rounds in arms.items():
        limit = statistics.median(each / one.engine for each, one in zip(bare, rounds, strict=True))
        rate = statistics.median(one.images_per_second for one in rounds)
        yield figure_of(
            f"service_vs_bare_{name}",
            [each / one.total for each, one in zip(bare, rounds, strict=True)],
            0.93,
            limit,
            f"with the engine's CPU alone; plain diffusers {1000 * statistics.median(bare):.0f} ms an image "
            f"(to count: >= {1000 * LEAST_IMAGE_SECONDS:.0f}), {rate:.1f} images/s",
        )
    post, csv = ([one.rows for one in arms[name]] for name in ("post", "csv"))
    yield figure_of(
        "bulk_rows",
        [bulk / interactive for bulk, interactive in zip(csv, post, strict=True)],
        0.95,
        1.0,
        f"{statistics.median(csv):.1f} rows a step batch by CSV, {statistics.median(post):.1f} by POST",
    )


Submit = Callable[[Plane, Sequence[GenerationRequest]], Submitted]


def saturate(plane: Plane, submit: Submit, requests: Sequence[GenerationRequest]) -> Arm:
    """Submit these and wait for all."""
    pids = [plane.pids[name] for name in plane.workers]
    before, threads, counts = plane.cpu(), [thread_seconds(pid) for pid in pids], step_batches(plane)
    begun_at = plane.now()
    jobs = submit(plane, requests)
    jobs.wait(MAX_SECONDS, FULL_SHARE)
    rows = mean_rows(counts, step_batches(plane))
    ends = jobs.wait_for_all(MAX_SECONDS)
    used = spent(before, plane.cpu())
    engine = sum(busiest(old, thread_seconds(pid)) for pid, old in zip(pids, threads, strict=True))
    by_process = {name: seconds / jobs.num for name, seconds in used.items()}
    return Arm(by_process, engine / jobs.num, rows, jobs.num / (ends.last_at - begun_at))


def step_batches(plane: Plane) -> tuple[float, float]:
    """Rows of all step batches of all workers so far, and their number."""
    texts = []
    for worker in plane.ready["workers"]:
        with urlopen(worker["metrics_url"], timeout=10) as response:
            texts.append(response.read().decode())
    rows, batches = (
        sum(total(text, f"calotype_step_batch_rows_{end}") for text in texts) for end in ("sum", "count")
    )
    return rows, batches


def total(text: str, name: str) -> float:
    """The sum of a metric over all its labels, in the text of `/metrics`."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


def mean_rows(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Rows of a step batch between two readings; 0 if there was none."""
    num_batches = after[1] - before[1]
    return (after[0] - before[0]) / num_batches if num_batches else 0.0
