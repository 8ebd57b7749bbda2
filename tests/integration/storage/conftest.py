"""What the storage tests share: a way to make jobs."""

from collections.abc import Callable
from typing import Any

import pytest

from storage import submissions
from storage.database import Database
from storage.job_views import Job
from storage.jobs import Claim, WorkerName, claim
from tests.fixtures.new_jobs import new_job

MakeJob = Callable[..., Job]
WORKER = WorkerName(boot_id="boot-1", name="cpu:0@test")


@pytest.fixture
def make_job(database: Database, account: str) -> MakeJob:
    """Creates a queued job of the test's account."""

    def make(**changes: Any) -> Job:
        return submissions.create(database, new_job(account, **changes), redispatch_seconds=15)[0]

    return make


@pytest.fixture
def claim_job(database: Database) -> Callable[..., Claim]:
    """Claims a job as a worker that serves both tiers."""

    def make(job_id: str, *, lease_seconds: float = 30, worker: WorkerName = WORKER) -> Claim:
        claimed = claim(database, job_id, tiers=["sd", "hd"], worker=worker, lease_seconds=lease_seconds)
        assert claimed is not None
        return claimed

    return make
