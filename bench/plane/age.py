"""The age of a service: calls on a database of two weeks beside the same calls on one that is nearly empty.

Both databases have an API of their own, and no sweeper or worker that would change their rows. The calls take
turns between them. The blocks that every statement of `storage` reads are counted on the old one.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.configuration import ROOT, write_configuration
from bench.figures import Figure, figure_of, quantile
from bench.fronts import free_port
from bench.plane.bounds import beyond_bounds
from bench.plane.calls import OWNER
from bench.plane.calls import measure as call_everything
from bench.plane.load import Connection, body_of
from bench.plane.rows import TIERS, Rows, account_id, fill, job_id
from bench.workload import mixed_requests
from local.endpoints import Embedded, base_environment, embedded
from local.process import Process, tail
from storage import accounts, jobs
from storage.database import Database
from storage.jobs import Claim, WorkerName
from storage.roles import set_users

SIDE, MAX_RATIO = 128, 1.5
START_SECONDS = 120.0
LEASE_SECONDS = 3600.0
WORKER = WorkerName("bench-age", "bench/age")
YOUNG, OLD = "young", "old"


@dataclass(frozen=True)
class Amounts:
    """Rows of the old database and of the young one, and calls of each kind."""

    num_finished: int = 1_000_000
    num_queued: int = 200_000
    num_young: int = 200
    num_rounds: int = 5
    num_calls: int = 120
    num_warming: int = 20


WHOLE = Amounts()
SHORT = Amounts(num_finished=5_000, num_queued=1_000, num_rounds=2, num_calls=5, num_warming=2)

Seconds = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
"""By database and call: the seconds of each round."""


def measure(*, is_short: bool) -> Iterator[Figure]:
    """The p99 of calls on an old database ÷ that on a young one, and the statements that read too much."""
    amounts = SHORT if is_short else WHOLE
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sizes = {
            YOUNG: (amounts.num_young, amounts.num_young),
            OLD: (amounts.num_finished, amounts.num_queued),
        }
        systems = {
            name: stack.enter_context(_system(folder / name, num_finished, num_queued))
            for name, (num_finished, num_queued) in sizes.items()
        }
        yield from figures_of(_seconds(systems, amounts))
        old = systems[OLD]
        watch = call_everything(old.rows, old.databases)
    beyond = beyond_bounds(watch)
    listed = "; ".join(map(str, beyond)) or "none reads more"
    yield figure_of(
        "statements_beyond_bounds",
        [len(beyond)],
        0,
        0.0,
        f"of {len(watch.explained)} on {amounts.num_finished + amounts.num_queued} jobs: {listed}",
        is_at_most=True,
    )


def figures_of(seconds: Seconds) -> Iterator[Figure]:
    """The figures of these seconds; the value is of all rounds together."""
    for name, old in seconds[OLD].items():
        young = seconds[YOUNG][name]
        all_old, all_young = (sorted(each for one in rounds for each in one) for rounds in (old, young))
        reason = ", ".join(
            f"{age} p50 {1000 * quantile(found, 0.5):.1f} p99 {1000 * quantile(found, 0.99):.1f} ms"
            for age, found in ((OLD, all_old), (YOUNG, all_young))
        )
        yield figure_of(
            f"flat_by_age_{name}",
            [_p99(one) / _p99(other) for one, other in zip(old, young, strict=True)],
            MAX_RATIO,
            1.0,
            f"{reason}; {len(all_old)} calls each",
            value=quantile(all_old, 0.99) / quantile(all_young, 0.99),
            is_at_most=True,
        )


def _p99(seconds: Sequence[float]) -> float:
    return quantile(seconds, 0.99)


class _System:
    """One database with its API, and the calls on it."""

    def __init__(self, services: Embedded, rows: Rows, url: str, metrics_url: str, api_key: str) -> None:
        self.databases = {OWNER: Database(services.database_url, 2)}
        for role, role_url in services.database_urls.items():
            self.databases[role] = Database(role_url, 2)
        self.rows = rows
        self._client, self._metrics = Connection(url, api_key), Connection(metrics_url, "")
        self._bodies = [body_of(one) for one in mixed_requests(50, SIDE, seed=1)]
        self._num_posted = 0
        self.last_job = job_id(1)

    @property
    def calls(self) -> Mapping[str, Callable[[], float]]:
        """What is measured: each makes one call and returns its seconds."""
        return {
            "post": self._post,
            "status": lambda: self._get(f"/v1/jobs/{self.last_job}"),
            "status_ended": lambda: self._get(f"/v1/jobs/{job_id(1)}"),
            "claim": self._claim,
            "claim_bulk": self._claim_bulk,
            "tiers": lambda: self._get("/v1/tiers"),
            "metrics": self._scrape,
        }

    def close(self) -> None:
        """Close all connections."""
        for connection in (self._client, self._metrics):
            connection.close()
        for database in self.databases.values():
            database.close()

    def _post(self) -> float:
        body = self._bodies[self._num_posted % len(self._bodies)]
        self._num_posted += 1
        begun_at = time.perf_counter()
        job = self._client.submit(body)
        taken = time.perf_counter() - begun_at
        self.last_job = job["id"]
        return taken

    def _get(self, path: str) -> float:
        begun_at = time.perf_counter()
        status, answer = self._client.ask("GET", path)
        taken = time.perf_counter() - begun_at
        if status != 200:
            raise RuntimeError(f"GET {path}: {status} {answer}")
        return taken

    def _scrape(self) -> float:
        begun_at = time.perf_counter()
        self._metrics.text("/metrics")
        return time.perf_counter() - begun_at

    def _claim(self) -> float:
        begun_at = time.perf_counter()
        claim = jobs.claim(
            self.databases["worker"], self.last_job, tiers=TIERS, worker=WORKER, lease_seconds=LEASE_SECONDS
        )
        taken = time.perf_counter() - begun_at
        if claim is None:
            raise RuntimeError(f"{self.last_job} could not be claimed")
        jobs.fail(
            self.databases["worker"], claim.lease, code="numeric_error", detail="bench", retryable=False
        )
        return taken

    def _claim_bulk(self) -> float:
        begun_at = time.perf_counter()
        claims = jobs.claim_next(
            self.databases["worker"], tiers=TIERS, worker=WORKER, lease_seconds=LEASE_SECONDS, limit=1
        )
        taken = time.perf_counter() - begun_at
        for claim in claims:
            self._give_back(claim)
        return taken

    def _give_back(self, claim: Claim) -> None:
        jobs.release(
            self.databases["worker"],
            claim.lease,
            code="numeric_error",
            detail="bench",
            charged=False,
            max_attempts=5,
            backoff_seconds=0,
        )


def _seconds(systems: Mapping[str, _System], amounts: Amounts) -> Seconds:
    """Make every call on each database in turns."""
    found: dict[str, dict[str, list[list[float]]]] = {
        name: {call: [] for call in system.calls} for name, system in systems.items()
    }
    for system in systems.values():
        for _ in range(amounts.num_warming):
            for make in system.calls.values():
                make()
    for number in range(amounts.num_rounds * amounts.num_calls):
        order = sorted(systems, reverse=bool(number % 2))
        for call in next(iter(systems.values())).calls:
            for name in order:
                if number % amounts.num_calls == 0:
                    found[name][call].append([])
                found[name][call][-1].append(systems[name].calls[call]())
    return found


@contextmanager
def _system(folder: Path, num_finished: int, num_queued: int) -> Iterator[_System]:
    """A database with so many rows and its API, while the body runs."""
    with embedded(folder / "data", keep=False) as services:
        _migrate(services)
        db = Database(services.database_url, 1)
        set_users(db, services.database_urls)
        rows = fill(services.database_url, num_finished=num_finished, num_queued=num_queued)
        api_key = accounts.create_key(db, account_id(0), "bench").plaintext
        db.close()
        port, metrics_port = free_port(), free_port()
        environment = {
            **base_environment(),
            **services.environment_of("api"),
            "CALOTYPE_CONFIG": str(write_configuration(folder, [])),
            "CALOTYPE_METRICS_PORT": str(metrics_port),
            "CALOTYPE_PUBLIC_URL": f"http://127.0.0.1:{port}",
            "PYTHONPATH": str(ROOT),
        }
        log = folder / "api.log"
        process = Process(
            [sys.executable, "-m", "cli", "api", f"--port={port}"], environment, cwd=ROOT, log=log
        )
        try:
            _wait_until_answering(port, process, log)
            url = f"http://127.0.0.1:{port}"
            system = _System(services, rows, url, f"http://127.0.0.1:{metrics_port}", api_key)
            try:
                yield system
            finally:
                system.close()
        finally:
            process.kill()


def _migrate(services: Embedded) -> None:
    environment = {**os.environ, **services.environment, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "alembic", "upgrade", "head"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)


def _wait_until_answering(port: int, process: Process, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        client = Connection(f"http://127.0.0.1:{port}", "")
        try:
            client.text("/healthz")
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the API does not start:\n{tail(log, 30)}") from None
            time.sleep(0.1)
        else:
            return
        finally:
            client.close()
