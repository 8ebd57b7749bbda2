"""Measures what an S3 server that answers 20 ms late costs the engine, with work always waiting.

    python -m bench.overlap [--pairs 12] [--seconds 12] [--late-ms 20] [--slots 24 0]

One process runs what a worker runs: a real engine on one thread, and `tasks.generate` on as many threads as
there are slots of both lanes, with real rows and a real S3 server behind `bench.late_proxy`. Late and
punctual answers take turns (ABBA) within one run, timed in wall-clock seconds, because waiting takes no CPU
time. Other load on the machine therefore shows: take the median of many pairs.
"""

import argparse
import itertools
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from alembic import command
from alembic.config import Config

from bench.exactness import TimedEngine
from bench.figures import Figure, figure_of
from bench.late_proxy import run_proxy
from bench.strategies import rows_of
from bench.workload import MODEL, mixed_requests
from catalogue.lanes import LANES, Lane
from engine.generation import Handle
from engine.loading.load import ModelSpec, load_models
from engine.request import GenerationRequest
from local.endpoints import Embedded, embedded
from logs import configure_logs
from storage import accounts, submissions
from storage.blobs import Blobs
from storage.database import Database
from storage.jobs import WorkerName
from storage.submissions import NewJob
from tasks.generate import Generate, GeneratePlan
from tasks.in_flight import InFlightJobs
from tasks.isolation import Isolations

ROOT = Path(__file__).resolve().parents[1]
SIDE, MAX_ROWS, TIER = 128, 16, "sd"
FILLING_SECONDS = 15.0
HOUR_SECONDS = 3600.0  # a lease that need not be renewed
LATE_MS, SLOTS = 20.0, (24, 0)
"""The interactive slots of a worker at this cap. Bulk jobs would wait in the engine, and hide lateness."""


@dataclass(frozen=True)
class Amounts:
    """How many pairs of windows, and the seconds of a window."""

    num_pairs: int = 12
    seconds: float = 12.0


WHOLE, SHORT = Amounts(), Amounts(num_pairs=1, seconds=4.0)


@dataclass(frozen=True)
class Window:
    """The work done in some seconds of one variant."""

    is_late: bool
    seconds: float
    num_row_steps: int
    num_step_batches: int
    num_images: int
    busy_seconds: float

    @property
    def idle_share(self) -> float:
        """The share of the time that the engine's thread spent outside of ticks."""
        return 1 - self.busy_seconds / self.seconds

    @property
    def speed(self) -> float:
        """Row steps a second; finer than images, because a window has few."""
        return self.num_row_steps / self.seconds

    @property
    def rows(self) -> float:
        """Rows of a step batch; an upload lowers it by holding a slot, on any machine."""
        return self.num_row_steps / self.num_step_batches


class Counts:
    """The work of an engine and its tasks so far; each number has one writer or a lock."""

    def __init__(self, engine: TimedEngine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self.num_row_steps = 0
        self.num_images = 0

    def submit(
        self, request: GenerationRequest, *, before_first_step: Callable[[], object] | None = None
    ) -> Handle:
        """`engine.submit`, with each step counted."""

        def count(*_: int) -> None:
            self.num_row_steps += rows_of(request)  # on the engine's thread only

        return self._engine.submit(request, on_progress=count, before_first_step=before_first_step)

    def finished(self) -> None:
        """Count one job with its file and upload."""
        with self._lock:
            self.num_images += 1

    def window(self, seconds: float, *, is_late: bool) -> Window:
        """Return the work of the next seconds."""
        begun_at, before, busy_before = time.monotonic(), self._now(), self._engine.busy_seconds
        time.sleep(seconds)
        taken, after = time.monotonic() - begun_at, self._now()
        rows, batches, images = (late - early for late, early in zip(after, before, strict=True))
        return Window(is_late, taken, rows, batches, images, self._engine.busy_seconds - busy_before)

    def _now(self) -> tuple[int, int, int]:
        return self.num_row_steps, self._engine.num_ticks, self.num_images


def losses(windows: Sequence[Window], of: Callable[[Window], float] = lambda one: one.speed) -> list[float]:
    """Return for each pair of neighbouring windows the share of speed (or `of`) that late answers cost."""
    found = []
    for first, second in zip(windows[::2], windows[1::2], strict=True):
        late, plain = (first, second) if first.is_late else (second, first)
        if plain.is_late or not late.is_late:
            raise ValueError("a pair has one window of each arm")
        found.append(1 - of(late) / of(plain))
    return found


def measure(*, is_short: bool) -> Iterator[Figure]:
    """The part of `make bench`."""
    amounts = SHORT if is_short else WHOLE
    warnings.simplefilter("ignore")
    yield from figures(run_windows(amounts, LATE_MS, SLOTS))


def figures(windows: Sequence[Window]) -> Iterator[Figure]:
    """What late answers cost in idle time, and in throughput."""
    late, plain = ([one for one in windows if one.is_late == is_late] for is_late in (True, False))
    seconds = sum(one.seconds for one in late)
    other = statistics.median(one.idle_share for one in plain)
    yield figure_of(
        "s3_latency_cost",
        [one.idle_share for one in late],
        0.01,
        0.0,
        f"share of the engine's time outside of its ticks; without lateness {other:.4f}",
        value=1 - sum(one.busy_seconds for one in late) / seconds,
        is_at_most=True,
    )
    reason = "row steps a second, late windows by their neighbours"
    yield figure_of("s3_throughput_lost", losses(windows), None, 0.0, reason, is_at_most=True)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--pairs", type=int, default=WHOLE.num_pairs)
    options.add_argument("--seconds", type=float, default=WHOLE.seconds, help="of one window")
    options.add_argument("--late-ms", type=float, default=LATE_MS)
    options.add_argument(
        "--slots", type=int, nargs=2, default=SLOTS, help="interactive and bulk jobs that are held at once"
    )
    asked = options.parse_args()
    warnings.simplefilter("ignore")
    windows = run_windows(Amounts(asked.pairs, asked.seconds), asked.late_ms, asked.slots)
    print("\n".join(report(windows, asked.late_ms)))


def run_windows(amounts: Amounts, late_ms: float, slots: Sequence[int]) -> list[Window]:
    """Start the services and measure; `slots` are the interactive and bulk jobs that are held at once."""
    configure_logs("warning", "console")
    with tempfile.TemporaryDirectory() as folder, embedded(Path(folder) / "data", keep=False) as services:
        return windows_of(
            services,
            num_pairs=amounts.num_pairs,
            seconds=amounts.seconds,
            late_seconds=late_ms / 1e3,
            lanes=[*[LANES[0]] * slots[0], *[LANES[1]] * slots[1]],
        )


def windows_of(
    services: Embedded, *, num_pairs: int, seconds: float, late_seconds: float, lanes: Sequence[Lane]
) -> list[Window]:
    """Yield the windows of both variants in order; each slot belongs to one of `lanes`."""
    os.environ.update(services.environment)
    command.upgrade(Config(toml_file=str(ROOT / "pyproject.toml")), "head")
    loaded = load_models(
        [ModelSpec(MODEL, str(ROOT / "models" / MODEL))],
        device="cpu:0",
        row_limits={MODEL: {SIDE * SIDE: MAX_ROWS}},
        num_threads=1,
    )
    engine = TimedEngine(loaded.models, loaded.row_limits, determinism=loaded.determinism)
    db, counts, ended = Database(services.database_url, len(lanes) + 2), Counts(engine), threading.Event()
    engine.start()
    late = multiprocessing.get_context("spawn").Value("d", 0.0)
    with proxied(services.s3_endpoint, late) as endpoint:
        generate = Generate(
            db=db,
            blobs=_blobs(services, endpoint, len(lanes)),
            submit=counts.submit,
            in_flight=InFlightJobs(),
            isolations=Isolations(db),
            worker=WorkerName("bench", "cpu:0@bench"),
            tiers=[TIER],
            plan=GeneratePlan(lease_seconds=HOUR_SECONDS),
        )
        threads = [
            threading.Thread(target=_serve, args=(number, lane, db, generate, counts, ended))
            for number, lane in enumerate(lanes)
        ]
        for thread in threads:
            thread.start()
        time.sleep(FILLING_SECONDS)
        windows = []
        for is_late in itertools.islice(itertools.cycle((False, True, True, False)), 2 * num_pairs):
            late.value = late_seconds if is_late else 0.0
            windows.append(counts.window(seconds, is_late=is_late))
        ended.set()
        engine.stop()
        for thread in threads:
            thread.join()
    db.close()
    return windows


@contextmanager
def proxied(endpoint: str, late_seconds: Any) -> Iterator[str]:
    """Yield the address at which the same server answers late."""
    address, context = urlsplit(endpoint), multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (address.hostname, address.port, late_seconds, theirs)
    process = context.Process(target=run_proxy, args=arguments, daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _blobs(services: Embedded, endpoint: str, num_slots: int) -> Blobs:
    return Blobs(
        endpoint=endpoint,
        public_endpoint=endpoint,
        region=services.s3_region,
        access_key=services.s3_access_key,
        secret_key=services.s3_secret_key,
        bucket=services.bucket,
        max_connections=num_slots,
    )


def _serve(
    number: int, lane: Lane, db: Database, generate: Generate, counts: Counts, ended: threading.Event
) -> None:
    """Run one slot: one job after another, as if dispatched."""
    account = accounts.create_account(db, f"bench-{number}")
    requests = itertools.cycle(mixed_requests(100, SIDE, seed=number))
    while not ended.is_set():
        job, *_ = submissions.create(db, _job(account, lane, next(requests)), redispatch_seconds=HOUR_SECONDS)
        generate(job.id)
        counts.finished()


def _job(account: str, lane: Lane, request: GenerationRequest) -> NewJob:
    return NewJob(
        account_id=account,
        model=MODEL,
        tier=TIER,
        lane=lane,
        parameters=request.parameters,
    )


def report(windows: Sequence[Window], late_ms: float) -> Iterator[str]:
    """Markdown: a line an arm, and the loss of the pairs."""
    yield "| answers | row steps a second | of them a step batch | images a second | idle |"
    yield "|---|---|---|---|---|"
    for name, is_late in (("at once", False), (f"{late_ms:g} ms late", True)):
        strategy = [window for window in windows if window.is_late == is_late]
        seconds, steps = sum(one.seconds for one in strategy), sum(one.num_row_steps for one in strategy)
        batches, images = (
            sum(one.num_step_batches for one in strategy),
            sum(one.num_images for one in strategy),
        )
        median = statistics.median(one.speed for one in strategy)
        idle = 1 - sum(one.busy_seconds for one in strategy) / seconds
        yield f"| {name} | {median:.1f} | {steps / batches:.2f} | {images / seconds:.2f} | {idle:.2%} |"
    yield ""
    for name, found in (
        ("row steps a second", losses(windows)),
        ("rows of a step batch", losses(windows, lambda one: one.rows)),
    ):
        low, _, high = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
        yield (
            f"{name} lost: median {statistics.median(found):+.1%} of {len(found)} pairs, half of them from "
            f"{low:+.1%} to {high:+.1%}, all from {min(found):+.1%} to {max(found):+.1%}"
        )
    load, threads = os.getloadavg()[0], torch.get_num_threads()
    yield f"load average {load:.1f} on {os.cpu_count()} cores, threads of a step: {threads}"


if __name__ == "__main__":
    main()
