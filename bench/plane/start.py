"""How long `calotype up` takes until it is ready, and the memory of a worker that has drawn.

A process of `calotype up` is started again and again in one data folder; the first start, which makes the
databases and tests the model, is not counted.
"""

import json
import math
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.configuration import ROOT
from bench.figures import Figure, figure_of
from bench.plane.load import Connection, body_of
from bench.plane.system import PROFILES, seconds_of
from bench.workload import MODEL, mixed_requests
from local.endpoints import base_environment
from local.tree import PROGRAM

NUM_STARTS, NUM_JOBS, SIDE = 5, 8, 128
MAX_READY_SECONDS, MAX_WORKER_MEGABYTES = 8.0, 450.0
START_SECONDS, STOP_SECONDS, POLL_SECONDS = 900.0, 90.0, 0.02
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Started:
    """A running `calotype up`: when it was ready, in seconds and CPU seconds, and its ready file."""

    seconds: float
    cpu_seconds: float
    ready: dict[str, Any]


def measure(*, is_short: bool) -> Iterator[Figure]:
    """Seconds of warm starts, and megabytes of a worker besides its weights, by RSS and by PSS."""
    starts: list[Started] = []
    rss: list[float] = []
    pss: list[float] = []
    weights = weight_bytes(ROOT / "models" / MODEL) / 1e6
    with tempfile.TemporaryDirectory() as name:
        for number in range(1 + (1 if is_short else NUM_STARTS)):
            with _up(Path(name)) as started:
                if number:
                    starts.append(started)
                    continue
                _draw(started.ready)
                for worker in started.ready["workers"]:
                    memory = psutil.Process(int(worker["pid"])).memory_full_info()
                    rss.append(memory.rss / 1e6 - weights)
                    pss.append(memory.pss / 1e6 - weights)
    cpu = statistics.median(one.cpu_seconds for one in starts)
    load = os.getloadavg()[0]
    yield figure_of(
        "ready_seconds",
        [one.seconds for one in starts],
        MAX_READY_SECONDS,
        cpu / len(os.sched_getaffinity(0)),
        f"{len(starts)} warm starts; the limit is their {cpu:.1f} CPU seconds on all cores; load {load:.1f}",
        is_at_most=True,
    )
    reason = f"besides {weights:.0f} MB of weights, after {NUM_JOBS} jobs; a sample a worker"
    yield figure_of("worker_rss_megabytes", rss, MAX_WORKER_MEGABYTES, None, reason, is_at_most=True)
    yield figure_of(
        "worker_pss_megabytes",
        pss,
        MAX_WORKER_MEGABYTES,
        None,
        f"{reason}; memory that processes share is divided among them",
        is_at_most=True,
    )


@contextmanager
def _up(folder: Path) -> Iterator[Started]:
    """`calotype up` in that folder while the body runs, with the shipped configuration."""
    ready_file, log = folder / "ready.json", folder / "up.log"
    ready_file.unlink(missing_ok=True)
    environment = {**base_environment(), "PYTHONPATH": str(ROOT), "CALOTYPE_PROFILES_DIR": str(PROFILES)}
    command = [*PROGRAM, "up", "--data-dir", str(folder / "data"), "--ready-file", str(ready_file)]
    begun_at = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        while not ready_file.exists():
            if process.poll() is not None or time.monotonic() - begun_at > START_SECONDS:
                raise RuntimeError(f"`calotype up` does not start:\n{log.read_text()[-2000:]}")
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - begun_at
        ready = json.loads(ready_file.read_text(encoding="utf-8"))
        yield Started(seconds, seconds_of(process.pid), ready)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_SECONDS)


def _draw(ready: dict[str, Any]) -> None:
    """Draw some images, so that the workers have what they need while they work."""
    client = Connection(ready["url"], ready["api_key"])
    jobs = [client.submit(body_of(one)) for one in mixed_requests(NUM_JOBS, SIDE, seed=1)]
    for job in jobs:
        client.wait(job)
    client.close()


def weight_bytes(folder: Path) -> int:
    """The size in memory of all weights of a folder, as 32-bit numbers."""
    return sum(FLOAT_BYTES * _num_numbers(path) for path in sorted(folder.rglob("*.safetensors")))


def _num_numbers(path: Path) -> int:
    """How many numbers a safetensors file holds, by its header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")
