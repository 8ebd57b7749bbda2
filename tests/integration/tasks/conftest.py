"""What the task tests share: jobs in a tier of their own, and a fake engine that paints what it was asked."""

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from catalogue.warnings import RequestWarning
from engine.errors import Canceled
from engine.request import GeneratedImage, GenerationRequest, Timings
from storage import submissions
from storage.blobs import Blobs
from storage.database import Database
from storage.job_views import Job
from storage.jobs import WorkerName
from storage.roles import DatabaseRole
from tasks.generate import Generate, GeneratePlan
from tasks.in_flight import InFlightJobs
from tasks.isolation import Isolations
from tasks.job_observers import FlowerObserver, JobObserver
from tasks.task_events import TaskEvent
from tests.fixtures.new_jobs import new_job

from .receiver import Behave, Receiver

MakeJob = Callable[..., Job]


@pytest.fixture
def tier() -> str:
    """A tier of this test's own."""
    return f"tier-{secrets.token_hex(4)}"


@pytest.fixture
def make_job(database: Database, account: str, tier: str) -> MakeJob:
    """Creates a queued job of the test's account and tier."""

    def make(*, redispatch_seconds: float = 15, **changes: object) -> Job:
        new = new_job(account, **{"tier": tier, "width": 16, "height": 8, **changes})
        return submissions.create(database, new, redispatch_seconds=redispatch_seconds)[0]

    return make


class FakeHandle:
    """A generation that ends when the test says so."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.future: Future[GeneratedImage] = Future()
        self.progress = 0.5

    def cancel(self) -> None:
        if not self.future.done():
            self.future.set_exception(Canceled())

    def succeed(self, warnings: tuple[RequestWarning, ...] = ()) -> None:
        paint = hashlib.sha256(f"{self.request.job_id}|{self.request.seed}".encode()).digest()
        pixels = np.zeros((self.request.height, self.request.width, 3), dtype=np.uint8)
        pixels[0, :10] = np.frombuffer(paint[:30], dtype=np.uint8).reshape(10, 3)
        timings = Timings(0.1, 0.0, 1.0, 0.1, 1, device_seconds=0.5)
        steps = self.request.num_inference_steps
        self.future.set_result(GeneratedImage(pixels, warnings, timings, 2.0, {"cap": steps}, steps))


class FakeEngine:
    """Takes requests; `behave` decides what becomes of each."""

    def __init__(self) -> None:
        self.handles: list[FakeHandle] = []
        self.behave: Callable[[FakeHandle], None] = FakeHandle.succeed
        self.submitted = threading.Event()
        self.ticked_at = 0.0
        self.is_idle = True

    def submit(
        self, request: GenerationRequest, *, before_first_step: Callable[[], object] | None = None
    ) -> FakeHandle:
        handle = FakeHandle(request)
        self.handles.append(handle)
        if before_first_step is not None:
            before_first_step()
        self.behave(handle)
        self.submitted.set()
        return handle


@pytest.fixture
def engine() -> FakeEngine:
    """An engine that succeeds at once, until told otherwise."""
    return FakeEngine()


@pytest.fixture
def in_flight() -> InFlightJobs:
    """What the worker of the test holds."""
    return InFlightJobs()


@pytest.fixture
def worker_database(databases: dict[DatabaseRole, Database]) -> Database:
    """The database as a worker may use it."""
    return databases["worker"]


@pytest.fixture
def told() -> list[tuple[str, TaskEvent]]:
    """What Flower was told: the id of each task with its event."""
    return []


@pytest.fixture
def observers(told: list[tuple[str, TaskEvent]]) -> list[JobObserver]:
    """Who watches the task of `generate`: Flower, and whom a test adds."""
    return [FlowerObserver(lambda task_id, event: told.append((task_id, event)))]


@pytest.fixture
def generate(
    worker_database: Database,
    blobs: Blobs,
    engine: FakeEngine,
    in_flight: InFlightJobs,
    tier: str,
    observers: list[JobObserver],
) -> Generate:
    """The task over real rows and real blobs, with the fake engine."""
    return Generate(
        db=worker_database,
        blobs=blobs,
        submit=engine.submit,
        in_flight=in_flight,
        isolations=Isolations(worker_database),
        worker=WorkerName(secrets.token_hex(4), "cpu:0@test"),
        tiers=[tier],
        plan=GeneratePlan(lease_seconds=30, upload_seconds=2, max_attempts=2),
        observers=observers,
    )


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    """An authority of the tests' own."""
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its certificate, for who shall trust it."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def make_receiver(ca: trustme.CA) -> Iterator[Callable[..., Receiver]]:
    """Starts HTTPS servers on loopback, and stops them after the test."""
    receivers: list[Receiver] = []

    def make(behave: Behave, **options: Any) -> Receiver:
        receivers.append(Receiver(ca, behave, **options))
        return receivers[-1]

    yield make
    for receiver in receivers:
        receiver.close()
