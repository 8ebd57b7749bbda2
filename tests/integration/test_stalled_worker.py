"""A whole worker that hears nothing any more: told, over Celery's remote control, to consume no queue."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from catalogue.states import State
from local.endpoints import Embedded
from settings import ROOT
from storage import dispatches, submissions
from storage.database import Database
from storage.job_views import get
from tasks.app import make_celery
from tasks.consumer_watchdog import EXIT_STALLED
from tasks.dispatch import Dispatcher
from tests.fixtures.new_jobs import new_job

PREFIX = "stalled-test:"


def test_S39_a_worker_that_hears_nothing_ends_its_jobs_and_itself(
    migrated: Embedded, database: Database, account: str, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        **migrated.environment,
        "CALOTYPE_BROKER_KEY_PREFIX": PREFIX,
        "CALOTYPE_WATCHDOG_SECONDS": "6",
        "CALOTYPE_SELF_TEST_SECONDS": "1",
    }
    ready_file, log = tmp_path / "ready.json", tmp_path / "worker.log"
    command = [sys.executable, "-m", "cli", "worker", "--device", "cpu:0", "--ready-file", str(ready_file)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=output)
    try:
        wait_for(ready_file.exists, 120)
        new = new_job(account, num_inference_steps=50)
        job, *_ = submissions.create(database, new, redispatch_seconds=15)
        dispatch = dispatches.of_new_job(database, job.id)
        assert dispatch is not None
        celery = make_celery(migrated.broker_url, PREFIX, ["sd", "hd"])
        assert Dispatcher(celery).dispatch([dispatch])
        wait_for(lambda: get(database, account, job.id).state is not State.QUEUED, 60)
        (queues,) = (celery.control.inspect(timeout=10).active_queues() or {}).values()
        for queue in queues:
            celery.control.cancel_consumer(queue["name"])
        assert process.wait(90) == EXIT_STALLED
    finally:
        process.kill()
        process.wait()
    assert get(database, account, job.id).state is State.SUCCEEDED, "what it held has come to its end"
    events = [json.loads(line)["event"] for line in log.read_text().splitlines() if line.startswith("{")]
    assert "consumer_stalled" in events


def wait_for(holds: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
