"""Measures the time from a worker's start to its first claim: a first start with self-test, then after kills.

    python -m bench.starts [--restarts 5] [--device cpu:0]

It runs data services of its own. Every start finds a waiting job and is killed once it has claimed it. The
database's clock times the claim, from just before the process starts; the worker's log line `worker_ready`
lists the parts of a start. On a shared machine look at CPU seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config

from catalogue.parameters import Parameters
from local.endpoints import Embedded, embedded
from storage import accounts, dispatches, submissions
from storage.database import Database
from storage.job_views import get
from storage.submissions import NewJob
from tasks.app import make_celery
from tasks.dispatch import Dispatcher

ROOT = Path(__file__).resolve().parents[1]
MAX_SECONDS = 600.0
PREFIX = "starts:"


@dataclass(frozen=True)
class Start:
    """One start of a worker, in seconds."""

    claim_seconds: float  # from before its process began to its first claim
    ready: dict[str, Any]  # from its log line `worker_ready`

    def __str__(self) -> str:
        parts = " ".join(f"{name} {seconds:.1f}" for name, seconds in self.ready["start_seconds"].items())
        return f"first claim after {self.claim_seconds:5.1f} s; {parts}; CPU {self.ready['cpu_seconds']:.1f}"


def summary(starts: Sequence[Start]) -> str:
    """The median and the extremes of several."""
    rows = []
    for name, values in (
        ("first claim", [start.claim_seconds for start in starts]),
        ("CPU", [start.ready["cpu_seconds"] for start in starts]),
    ):
        low, middle, high = min(values), statistics.median(values), max(values)
        rows.append(f"{name} {middle:.1f} s ({low:.1f} to {high:.1f})")
    return f"{len(starts)} restarts: " + ", ".join(rows)


class Bench:
    """Services, an account, and a folder for what workers keep between starts."""

    def __init__(self, services: Embedded, folder: Path, device: str) -> None:
        self._folder, self._device = folder, device
        self._db = Database(services.database_url, 2)
        self._account = accounts.create_account(self._db, "starts")
        self._dispatcher = Dispatcher(make_celery(services.broker_url, PREFIX, ["sd", "hd"]))
        self._environment = {
            **os.environ,
            **services.environment,
            "CALOTYPE_BROKER_KEY_PREFIX": PREFIX,
            "CALOTYPE_PROFILES_DIR": str(folder / "profiles"),
            "PYTHONPATH": str(ROOT),
        }

    def start(self) -> Start:
        """Start a worker, wait for its first claim, and kill it."""
        log = self._folder / "worker.log"
        job_id, created_at = self._waiting_job()
        command_line = [sys.executable, "-m", "cli", "worker", "--device", self._device]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command_line, cwd=ROOT, env=self._environment, stdout=output, stderr=output
            )
        try:
            deadline = time.monotonic() + MAX_SECONDS
            while (claimed_at := get(self._db, self._account, job_id).started_at) is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the worker took no job:\n{log.read_text()[-2000:]}")
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
        lines = [json.loads(line) for line in log.read_text().splitlines() if '"worker_ready"' in line]
        return Start((claimed_at - created_at).total_seconds(), lines[0])

    def _waiting_job(self) -> tuple[str, Any]:
        new = NewJob(
            account_id=self._account,
            model="tiny",
            tier="sd",
            lane="interactive",
            parameters=Parameters(
                prompt="a red heart",
                width=128,
                height=128,
                num_inference_steps=150,
                guidance_scale=4.0,
                scheduler="ddim",
                seed=1,
            ),
        )
        job, *_ = submissions.create(self._db, new, redispatch_seconds=15)
        dispatch = dispatches.of_new_job(self._db, job.id)
        if dispatch is None or not self._dispatcher.dispatch([dispatch]):
            raise RuntimeError("the broker accepted no message")
        return job.id, job.created_at


def main() -> None:
    """Print every start, and the median of the restarts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--device", default="cpu:0")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, embedded(Path(folder) / "data", keep=False) as services:
        os.environ.update(services.environment)
        command.upgrade(Config(toml_file=str(ROOT / "pyproject.toml")), "head")
        bench = Bench(services, Path(folder), options.device)
        print(f"first start: {bench.start()}", flush=True)
        starts = []
        for _ in range(options.restarts):
            starts.append(bench.start())
            print(f"restart:     {starts[-1]}", flush=True)
        print(summary(starts))


if __name__ == "__main__":
    main()
