"""Interactive requests beside a long bulk queue: how much later they are answered, and what bulk work gets.

An open loop of interactive requests runs in four blocks (on an idle service, twice beside bulk rows, idle
again), so that a machine that slows down slows both arms; its rate follows from what a request takes alone.
Bulk work alone is measured before and after.
"""

import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.figures import Figure, figure_of, quantile
from bench.plane.load import Answered, Connection, body_of, in_open_loop
from bench.plane.system import Plane, plane_system
from bench.workload import mixed_requests, poisson
from engine.policy.policy import BULK_PATIENCE_SECONDS
from engine.request import GenerationRequest

SIDE, SEED = 128, 7
MAX_RATIO, LEAST_SHARE = 1.3, 0.7
CSV_ROWS = 10_000
"""Rows of one upload."""
IDLE_SECONDS = 120.0


@dataclass(frozen=True)
class Amounts:
    """The load; each of the four blocks has half of the requests of an arm."""

    num_requests: int = 300
    load: float = 0.3
    """The requests of a second, in seconds of one that is drawn alone, for each worker."""
    num_timed: int = 12
    num_rows: int = 50_000
    settle_seconds: float = 5
    alone_seconds: float = 25


WHOLE = Amounts()
SHORT = Amounts(num_requests=8, num_timed=4, num_rows=300, settle_seconds=1, alone_seconds=4)


@dataclass(frozen=True)
class Window:
    """A stretch of time by the database's clock, and what ended in it."""

    seconds: float
    num_bulk: int
    bulk_row_steps: int
    interactive_device_seconds: float
    longest_bulk_wait_seconds: float


@dataclass(frozen=True)
class Run:
    """Both arms, each as its two blocks, and bulk work alone, before and after."""

    idle: Sequence[Sequence[Answered]]
    beside: Sequence[Sequence[Answered]]
    together: Window
    alone: Sequence[Window]
    num_devices: int
    rate: float
    """Interactive requests a second."""


def measure(*, is_short: bool) -> Iterator[Figure]:
    """The p95 of interactive requests beside bulk rows ÷ that of an idle service, and what bulk work gets."""
    amounts = SHORT if is_short else WHOLE
    with tempfile.TemporaryDirectory() as folder, plane_system(Path(folder)) as plane:
        yield from figures_of(_measure(plane, amounts))


def figures_of(run: Run) -> Iterator[Figure]:
    """The figures of a run."""
    idle, beside = ([one for block in arm for one in block] for arm in (run.idle, run.beside))
    by_block = [p95(ours) / p95(theirs) for ours, theirs in zip(run.beside, run.idle, strict=True)]
    yield figure_of(
        "interactive_beside_bulk",
        by_block,
        MAX_RATIO,
        1.0,
        f"idle p50 {_p(idle, 0.5)} p95 {_p(idle, 0.95)}, bulk p50 {_p(beside, 0.5)} p95 {_p(beside, 0.95)}; "
        f"{len(idle)} and {len(beside)} requests, {run.rate:.2f} a second; the samples are of half an arm",
        value=p95(beside) / p95(idle),
        is_at_most=True,
    )
    together = run.together
    # By the rows of their steps: images of this mix differ 25 times in their cost.
    alone = sum(one.bulk_row_steps for one in run.alone) / sum(one.seconds for one in run.alone)
    left = 1 - together.interactive_device_seconds / (together.seconds * run.num_devices)
    rate = together.bulk_row_steps / together.seconds
    yield figure_of(
        "bulk_beside_interactive",
        [rate / (alone * left)],
        LEAST_SHARE,
        1.0,
        f"bulk {together.num_bulk / together.seconds:.2f} images/s: {rate:.0f} rows of steps/s, alone "
        f"{alone:.0f}; interactive work leaves {left:.2f} of the device time",
    )
    yield figure_of(
        "oldest_bulk_wait_seconds",
        [together.longest_bulk_wait_seconds],
        BULK_PATIENCE_SECONDS,
        None,
        "from a bulk job's submission to the engine to its first step; the bar is the policy's patience",
        is_at_most=True,
    )


def p95(answered: Sequence[Answered]) -> float:
    """The 95th percentile of latency in seconds."""
    return quantile([one.latency_seconds for one in answered], 0.95)


def _p(answered: Sequence[Answered], share: float) -> str:
    return f"{quantile([one.latency_seconds for one in answered], share):.2f} s"


def _measure(plane: Plane, amounts: Amounts) -> Run:
    connect = partial(Connection, plane.url, plane.api_key)
    half = amounts.num_requests // 2
    requests = mixed_requests(4 * half, SIDE, SEED)
    client = connect()
    rate = amounts.load * len(plane.workers) / _seconds_alone(client, requests, plane, amounts.num_timed)
    blocks = [
        [(one.seconds, body_of(one.request)) for one in poisson(requests[start : start + half], rate, SEED)]
        for start in (0, half, 0, half)  # both arms have the same requests
    ]
    idle = [in_open_loop(connect, blocks[0])]
    batches = upload(client, amounts.num_rows)
    time.sleep(amounts.settle_seconds)
    alone = [_window(plane, amounts.alone_seconds)]
    begun_at = plane.now()
    beside = [in_open_loop(connect, block) for block in blocks[1:3]]
    together = window_of(plane, begun_at, plane.now())
    alone.append(_window(plane, amounts.alone_seconds))
    for batch in batches:
        client.cancel_batch(batch)
    _wait_until_idle(plane)
    client.close()
    # In the order of the blocks beside bulk: each ratio is of the same requests.
    idle = [in_open_loop(connect, blocks[3]), *idle]
    return Run(idle, beside, together, alone, len(plane.workers), rate)


def _seconds_alone(
    client: Connection, requests: Sequence[GenerationRequest], plane: Plane, num_timed: int
) -> float:
    """How long a request takes on an idle service, on average, once every worker has drawn."""
    num_first = 4 * len(plane.workers)
    for request in requests[:num_first]:
        client.draw(body_of(request))
    begun_at = time.monotonic()
    for request in requests[num_first : num_first + num_timed]:
        client.draw(body_of(request))
    return (time.monotonic() - begun_at) / num_timed


def upload(client: Connection, num_rows: int) -> list[str]:
    """Upload so many rows of the mix, in files of at most `CSV_ROWS`; return the batches."""
    requests = iter(mixed_requests(num_rows, SIDE, SEED + 1))
    files = iter(lambda: list(itertools.islice(requests, CSV_ROWS)), [])
    return [client.upload(rows) for rows in files]


def _window(plane: Plane, seconds: float) -> Window:
    begun_at = plane.now()
    time.sleep(seconds)
    return window_of(plane, begun_at, plane.now())


def window_of(plane: Plane, begun_at: float, ended_at: float) -> Window:
    """What ended between two instants of the database's clock."""
    [(num_bulk, row_steps, device_seconds, longest)] = plane.rows(
        """SELECT count(*) FILTER (WHERE lane = 'bulk'),
                  coalesce(sum(num_inference_steps * CASE WHEN guidance_scale > 1 THEN 2 ELSE 1 END)
                           FILTER (WHERE lane = 'bulk'), 0),
                  coalesce(sum((timings->>'device_seconds')::float8) FILTER (WHERE lane = 'interactive'), 0),
                  coalesce(max((timings->>'waiting_seconds')::float8) FILTER (WHERE lane = 'bulk'), 0)
             FROM jobs
            WHERE state = 'succeeded'
              AND finished_at BETWEEN to_timestamp(%s) AND to_timestamp(%s)""",
        begun_at,
        ended_at,
    )
    return Window(ended_at - begun_at, int(num_bulk), int(row_steps), float(device_seconds), float(longest))


def _wait_until_idle(plane: Plane) -> None:
    deadline = time.monotonic() + IDLE_SECONDS
    while plane.rows("SELECT 1 FROM jobs WHERE state IN ('queued', 'running') LIMIT 1"):
        if time.monotonic() > deadline:
            raise RuntimeError("bulk jobs still run after their batches were canceled")
        time.sleep(0.5)
