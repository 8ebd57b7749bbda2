"""The promises of `calotype worker --device none`, seen from outside, through its death too."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from local.endpoints import Embedded
from local.valkey import KEY_PREFIX
from settings import ROOT
from storage import accounts, jobs
from storage.database import Database
from storage.delivery_views import Delivery, list_deliveries
from storage.roles import DatabaseRole
from tasks.app import make_celery
from tasks.broker import Broker
from tasks.consumer_watchdog import EXIT_STALLED
from tasks.dispatch import Dispatcher
from tasks.queues import CPU_QUEUE, DELIVER
from tasks.sweeper import Sweeper, SweepPlan

from .conftest import MakeJob
from .receiver import Received, Receiver, answer

pytestmark = pytest.mark.usefixtures("outbox")

StartWorker = Callable[..., subprocess.Popen[bytes]]
MakeReceiver = Callable[..., Receiver]


@pytest.fixture
def prefix() -> str:
    """The place in the broker that the sender's key is good for."""
    return KEY_PREFIX


@pytest.fixture
def start_worker(migrated: Embedded, prefix: str, ca_file: Path, tmp_path: Path) -> Iterator[StartWorker]:
    """Runs the real command, and waits until it says that it is ready."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(**more: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            **migrated.environment_of("sender"),
            "CALOTYPE_BROKER_KEY_PREFIX": prefix,
            "CALOTYPE_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8, ::1/128",
            "CALOTYPE_CA_FILE": str(ca_file),
            "CALOTYPE_WEBHOOK_RETRY_SECONDS": "0.1,0.1",
            "CALOTYPE_PUBLIC_URL": "https://images.example.com",
            **more,
        }
        ready_file = tmp_path / f"ready-{len(processes)}.json"
        command = [sys.executable, "-m", "cli", "worker", "--device", "none", "--ready-file", str(ready_file)]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment))
        wait_for(ready_file.exists, 120)
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait(30)


@pytest.fixture
def sweeper(databases: dict[DatabaseRole, Database], migrated: Embedded, prefix: str) -> Iterator[None]:
    """A sweeper that looks ten times a second."""
    broker, stop = Broker(migrated.broker_url, prefix), threading.Event()
    plan = SweepPlan(sweep_seconds=0.1, redispatch_seconds=1)
    dispatcher = Dispatcher(make_celery(migrated.broker_url, prefix, []))
    loop = Sweeper(databases["sweeper"], broker, dispatcher, [], plan)
    thread = threading.Thread(target=loop.run, args=(stop,))
    thread.start()
    yield
    stop.set()
    thread.join(30)
    broker.close()


@pytest.fixture
def notify(database: Database, make_job: MakeJob) -> Callable[[str], str]:
    """Ends a job that asks for a webhook; its id."""

    def make(url: str) -> str:
        job = make_job(webhook_url=url)
        jobs.cancel(database, job.account_id, job.id)
        return job.id

    return make


def wait_for(holds: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def delivery_of(database: Database, account: str, job_id: str) -> Delivery:
    (delivery,) = list_deliveries(database, account, job_id=job_id)
    return delivery


@pytest.mark.usefixtures("sweeper")
def test_the_end_of_a_job_reaches_its_receiver_through_a_process_without_torch(
    database: Database,
    account: str,
    notify: Callable[[str], str],
    make_receiver: MakeReceiver,
    start_worker: StartWorker,
) -> None:
    def refuse_the_first(handler: BaseHTTPRequestHandler, request: Received) -> None:
        answer(503 if receiver.received[0] is request else 200)(handler, request)

    receiver = make_receiver(refuse_the_first)
    process = start_worker()
    job_id = notify(receiver.url())
    wait_for(lambda: delivery_of(database, account, job_id).state == "delivered")
    secret = accounts.webhook_secret(database, account)
    for request in receiver.received:
        said = Webhook(secret).verify(request.body, request.headers)
        assert (said["type"], said["data"]["id"]) == ("job.canceled", job_id)
    assert len({request.headers["webhook-id"] for request in receiver.received}) == 1
    if sys.platform == "linux":
        assert "torch" not in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.usefixtures("sweeper")
def test_a_worker_killed_in_the_middle_is_followed_by_another_under_the_same_id(
    database: Database,
    account: str,
    notify: Callable[[str], str],
    make_receiver: MakeReceiver,
    start_worker: StartWorker,
) -> None:
    def hang(_: BaseHTTPRequestHandler, __: Received) -> None:
        threading.Event().wait(60)

    receiver = make_receiver(hang)
    # Long enough that the kill comes before the attempt ends by itself.
    short = {"CALOTYPE_WEBHOOK_TIMEOUT_SECONDS": "10", "CALOTYPE_LEASE_SECONDS": "1"}
    process = start_worker(**short)
    job_id = notify(receiver.url())
    assert receiver.wait_for(1)
    process.kill()
    process.wait(30)
    receiver.behave = answer(200)
    start_worker(**short)
    wait_for(lambda: delivery_of(database, account, job_id).state == "delivered")
    assert len(receiver.received) >= 2
    assert len({request.headers["webhook-id"] for request in receiver.received}) == 1


def test_a_worker_told_to_stop_lets_its_attempt_end_and_begins_no_other(
    database: Database,
    account: str,
    prefix: str,
    migrated: Embedded,
    notify: Callable[[str], str],
    make_receiver: MakeReceiver,
    start_worker: StartWorker,
    tmp_path: Path,
) -> None:
    let_go = threading.Event()

    def hold(handler: BaseHTTPRequestHandler, request: Received) -> None:
        let_go.wait(60)
        answer(200)(handler, request)

    receiver = make_receiver(hold)
    first, second = notify(receiver.url()), notify(receiver.url())
    process = start_worker(CALOTYPE_WEBHOOK_THREADS="1", CALOTYPE_WEBHOOK_TIMEOUT_SECONDS="50")
    celery = make_celery(migrated.broker_url, prefix, [])
    # Whatever a message carries, it says no more than "look".
    celery.send_task(DELIVER, args=[{"forged": True}, None], kwargs={"x": 1}, queue=CPU_QUEUE)
    assert receiver.wait_for(1)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: not (tmp_path / "ready-0.json").exists())
    let_go.set()
    assert process.wait(60) == 0
    assert delivery_of(database, account, first).state == "delivered"
    assert (delivery_of(database, account, second).state, len(receiver.received)) == ("pending", 1)


def test_a_tier_is_not_served_without_a_device(migrated: Embedded) -> None:
    command = [sys.executable, "-m", "cli", "worker", "--device", "none", "--tiers", "sd"]
    environment = {**os.environ, **migrated.environment}
    answer = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (answer.returncode, "--tiers" in answer.stderr) == (2, True)


def test_S39_a_sender_that_hears_nothing_ends(
    migrated: Embedded, prefix: str, start_worker: StartWorker
) -> None:
    """It is told, over Celery's remote control, to consume none of its queues any more."""
    worker = start_worker(CALOTYPE_WATCHDOG_SECONDS="1.5", CALOTYPE_WEBHOOK_TIMEOUT_SECONDS="1")
    control = make_celery(migrated.broker_url, prefix, []).control
    (queues,) = (control.inspect(timeout=5).active_queues() or {}).values()
    for queue in queues:
        control.cancel_consumer(queue["name"])
    assert worker.wait(30) == EXIT_STALLED
