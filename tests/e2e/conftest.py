"""The whole system, really running, for the tests that look at it from outside."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme

from client.calotype import TERMINAL_STATES, Client
from local.up import running
from settings import ROOT
from storage.database import Database

CONFIG = """
default_model = "tiny"

[models.tiny]
path = "{path}"
schedulers = ["ddim", "euler"]
default_num_inference_steps = 20
min_side = 64
max_side = 256
tasks = ["text-to-image", "image-to-image", "inpainting"]

[models.tiny.loras.outline]
path = "{loras}/outline"

[models.tiny.tiers.sd]
default_width = 128
default_height = 128
max_pixels = 16384
max_step_batch_rows = 16

[models.tiny.tiers.hd]
default_width = 192
default_height = 192
max_pixels = 36864
max_step_batch_rows = 8

[[workers]]
device = "cpu:0"
tiers = ["sd"]
interactive_slots = 12

[[workers]]
device = "cpu:1"
tiers = ["sd", "hd"]
interactive_slots = 12

[prices.per_hour]
cpu = 36.0
"""


METRICS_HOST = "127.0.0.2"
"""Not the default, and on this machine alone: an address as Prometheus on another host would need."""
PATIENCE = 4
"""Waits are this many times as long as on two idle cores: they end a test that hangs, and promise no time."""

Json = dict[str, Any]


class Api:
    """The client's answers as the JSON that the server sent, which is what these tests look at."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def submit(self, request: Json) -> Json:
        """`POST /v1/jobs`."""
        return self.client.submit(**request).raw

    def job(self, job_id: str) -> Json:
        """`GET /v1/jobs/{id}`."""
        return self.client.get(job_id).raw

    def cancel(self, job_id: str) -> Json:
        """`DELETE /v1/jobs/{id}`."""
        return self.client.cancel(job_id).raw

    def submit_csv(self, path: Path) -> Json:
        """`POST /v1/batches`."""
        return self.client.csv(path).raw

    def batch(self, batch_id: str) -> Json:
        """`GET /v1/batches/{id}`."""
        return self.client.get_batch(batch_id).raw

    def cancel_batch(self, batch_id: str) -> Json:
        """`DELETE /v1/batches/{id}`."""
        return self.client.cancel_batch(batch_id).raw

    def download(self, url: str) -> bytes:
        """The bytes behind a presigned link."""
        return httpx2.get(url, timeout=30).raise_for_status().content


@dataclass
class System:
    """A running system; `ready` is read anew, since restarts rewrite it."""

    api: Api
    db: Database
    ready_file: Path

    @property
    def ready(self) -> Json:
        """What the ready file says now."""
        import json

        return dict(json.loads(self.ready_file.read_text()))

    def kill(self, name: str) -> int:
        """`kill -9` the service or the worker of that name or device; its process id."""
        known = [(s["name"], s["pid"]) for s in self.ready["services"]]
        known += [(w["device"], w["pid"]) for w in self.ready["workers"]]
        pid = dict(known)[name]
        os.kill(pid, signal.SIGKILL)
        return int(pid)

    def wait_until(self, holds: Callable[[], Any], seconds: float, what: str) -> Any:
        """Poll until `holds` says yes; fails the test if it has not after `PATIENCE` times `seconds`."""
        deadline = time.monotonic() + PATIENCE * seconds
        while not (found := holds()):
            if time.monotonic() > deadline:
                pytest.fail(f"not within {PATIENCE * seconds} s: {what}")
            time.sleep(0.02)
        return found

    def wait_for_workers(self, seconds: float = 120) -> None:
        """Until both workers take jobs, as after a test that killed some."""

        def are_ready() -> bool:
            workers = self.ready["workers"]
            return len(workers) == 2 and all(worker["queues"] for worker in workers)

        self.wait_until(are_ready, seconds, "both workers take jobs")

    def finish(self, job_ids: list[str], seconds: float = 120) -> list[Json]:
        """The jobs once all have ended."""
        *_, jobs = self.api.client.follow(job_ids, timeout_seconds=PATIENCE * seconds)
        return [job.raw for job in jobs]

    def rows(self, statement: str, *parameters: Any) -> list[Any]:
        """Straight from Postgres."""
        with self.db.transaction() as connection:
            return list(connection.exec_driver_sql(statement, parameters))


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    """An authority that the system trusts when it sends webhooks."""
    return trustme.CA()


@pytest.fixture(scope="session")
def system(
    tmp_path_factory: pytest.TempPathFactory, ca: trustme.CA, kept_self_tests: dict[str, str]
) -> Iterator[System]:
    """`calotype up` with two workers, of which one serves both tiers."""
    folder = tmp_path_factory.mktemp("system")
    config = folder / "calotype.toml"
    config.write_text(CONFIG.format(path=ROOT / "models" / "tiny", loras=ROOT / "models" / "tiny-loras"))
    ready_file = folder / "ready.json"
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    overrides = {
        **kept_self_tests,
        "CALOTYPE_CONFIG": str(config),
        "CALOTYPE_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8, ::1/128",
        "CALOTYPE_CA_FILE": str(folder / "ca.pem"),
        "CALOTYPE_METRICS_HOST": METRICS_HOST,
    }
    with running(folder / "data", ready_file=ready_file, overrides=overrides) as ready:
        db = Database(ready["database_url"], 2)
        with Client(url=ready["url"], api_key=ready["api_key"]) as client:
            yield System(Api(client), db, ready_file)
        db.close()


def ended(job: Json) -> bool:
    """Whether a job is in a final state."""
    return job["state"] in TERMINAL_STATES
