"""Measures the cost of killing both workers of a machine in turn under load: `make bench-kills`.

    python -m bench.kills [--jobs 240] [--rate 4] [--kills 8] [--every 12] [--out FILE]

It runs what `calotype up` runs, with two CPU workers, and sends SIGKILL to one after the other while requests
of mixed steps arrive in an open loop. Then it submits the same requests again without kills and compares the
SHA-256 of the images. `bench.kill_figures` evaluates the events.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from bench.configuration import write_configuration
from bench.kill_figures import Event, Outcome, failures, kills_of, table, write
from bench.workload import DueRequest, mixed_requests, poisson
from client.calotype import Client, Job, WaitTimeoutError
from local.up import running
from storage.database import Database

OUTPUT = Path("bench-output") / "kills.json"
DEVICES = ("cpu:0", "cpu:1")
SIDE, SEED = 128, 0
MAX_SECONDS = 600.0
"""The time for all jobs to end after the last kill."""


def main() -> None:
    """Measure, print and write; exit with 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=240)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second; 0: all at once")
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--every", type=float, default=12.0, help="seconds between two kills")
    parser.add_argument("--out", type=Path, default=OUTPUT)
    asked = parser.parse_args()
    requests = mixed_requests(asked.jobs, SIDE, SEED)
    arrivals = (
        poisson(requests, asked.rate, SEED) if asked.rate else [DueRequest(one, 0.0) for one in requests]
    )
    with tempfile.TemporaryDirectory() as folder, _system(Path(folder)) as (ready_file, ready):
        db = Database(ready["database_url"], 1)
        with Client(url=ready["url"], api_key=ready["api_key"], timeout_seconds=90) as client:
            killer = Killer(ready_file, asked.kills, asked.every)
            killer.start()
            job_ids = _submit(client, arrivals)
            killer.join()
            disturbed = _ended(client, job_ids)
            undisturbed = _ended(client, _submit(client, [DueRequest(one, 0.0) for one in requests]))
        kills = kills_of(
            [
                Outcome(one.state, _images(one), _images(other))
                for one, other in zip(disturbed, undisturbed, strict=True)
            ],
            _events(db, job_ids),
            num_kills=killer.num_kills,
            start_to_claim_seconds=_start_to_claim(db, killer.started_at),
        )
        db.close()
    write(kills, asked.out)
    print("\n".join(table(kills)))
    missed = list(failures(kills))
    print("\n".join(missed) or "no bar is missed")
    sys.exit(bool(missed))


class Killer:
    """A thread that kills the workers in turn, each once it has started, so many times in all."""

    def __init__(self, ready_file: Path, num_kills: int, every_seconds: float) -> None:
        self.num_kills = num_kills
        self._ready_file = ready_file
        self._every_seconds = every_seconds
        self._thread = threading.Thread(target=self._run, name="killer")
        self._first: set[int] = set()
        self._killed: set[int] = set()
        self.started_at: dict[int, float] = {}
        """Workers that were started after a kill, by process id: seconds since 1970."""

    def start(self) -> None:
        """Start; the first kill comes after one interval."""
        self._first = set(self._pids().values())
        self.started_at.clear()
        self._thread.start()

    def join(self) -> None:
        """Wait for the last kill, and until the workers have restarted."""
        self._thread.join()
        deadline = time.monotonic() + MAX_SECONDS
        while len(set(self._pids().values()) - self._killed) < 2 and time.monotonic() < deadline:
            time.sleep(0.5)

    def _run(self) -> None:
        while len(self._killed) < self.num_kills:
            time.sleep(self._every_seconds)
            device = f"cpu:{len(self._killed) % 2}"
            pid = self._pids().get(device)
            if pid is None or pid in self._killed:
                continue  # it has not restarted yet: the next round kills it
            os.kill(pid, signal.SIGKILL)
            self._killed.add(pid)
            print(f"killed {device} ({pid})", flush=True)

    def _pids(self) -> dict[str, int]:
        pids = {
            worker["device"]: int(worker["pid"])
            for worker in json.loads(self._ready_file.read_text())["workers"]
        }
        for pid in set(pids.values()) - self._killed - self._first:
            if pid not in self.started_at and psutil.pid_exists(pid):
                self.started_at[pid] = psutil.Process(pid).create_time()
        return pids


@contextmanager
def _system(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    ready_file = folder / "ready.json"
    settings = {"CALOTYPE_CONFIG": str(write_configuration(folder, DEVICES))}
    with running(folder / "data", say=print, ready_file=ready_file, overrides=settings) as ready:
        yield ready_file, ready


def _submit(client: Client, arrivals: Sequence[DueRequest]) -> list[str]:
    """Submit each request when it is due; return the job ids."""
    began_at, job_ids = time.monotonic(), []
    for number, arrival in enumerate(arrivals):
        time.sleep(max(0.0, began_at + arrival.seconds - time.monotonic()))
        one = arrival.request
        job = client.submit(
            one.prompt,
            width=one.width,
            height=one.height,
            num_inference_steps=one.num_inference_steps,
            guidance_scale=one.guidance_scale,
            seed=one.seed,
            idempotency_key=f"{number}-{began_at}",
        )
        job_ids.append(job.id)
    return job_ids


def _ended(client: Client, job_ids: list[str]) -> list[Job]:
    """Return the jobs once all have ended, or as they are after `MAX_SECONDS`."""
    jobs: list[Job] = []
    try:
        for found in client.follow(job_ids, timeout_seconds=MAX_SECONDS):
            jobs = found
    except WaitTimeoutError:
        pass  # in their last known state
    return jobs


def _images(job: Job) -> tuple[str, ...]:
    return tuple(image.sha256 for image in job.images)


def _events(db: Database, job_ids: Sequence[str]) -> list[Event]:
    rows = _rows(
        db,
        """SELECT job_id, transition, state, detail, extract(epoch FROM created_at)::float8 AS at
             FROM job_events WHERE job_id = ANY(%s) ORDER BY id""",
        list(job_ids),
    )
    return [Event(*row) for row in rows]


def _start_to_claim(db: Database, started_at: dict[int, float]) -> list[float]:
    rows = _rows(
        db,
        """SELECT workers.pid, extract(epoch FROM min(job_events.created_at))::float8
             FROM workers JOIN job_events ON job_events.worker = workers.id AND transition = 'claim'
            WHERE workers.pid = ANY(%s) GROUP BY workers.id, workers.pid""",
        list(started_at),
    )
    return [at - started_at[pid] for pid, at in rows]


def _rows(db: Database, statement: str, *parameters: Any) -> list[Any]:
    with db.transaction() as connection:
        return list(connection.exec_driver_sql(statement, parameters))


if __name__ == "__main__":
    main()
