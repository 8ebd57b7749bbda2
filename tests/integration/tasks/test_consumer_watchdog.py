"""A worker's consumer under its watchdog, in a process of its own, on a real broker."""

import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from local.binaries import valkey_program
from local.endpoints import Embedded
from local.ports import choose_ports
from settings import ROOT
from storage.dispatches import Dispatch
from tasks.app import make_celery
from tasks.consumer_watchdog import EXIT_STALLED
from tasks.dispatch import Dispatcher

WATCHDOG_SECONDS = 1.5

PROGRAM = """
import os, sys, threading
from pathlib import Path
from tasks.app import make_celery
from tasks.consumer import Consumer
from tasks.consumer_watchdog import ConsumerWatchdog
from tasks.pings import Pings

url, prefix, folder, name, watchdog_seconds = sys.argv[1:]
folder = Path(folder)
slots = {"interactive": 2, "bulk": 1}
app = make_celery(url, prefix, ["sd"])
pings = Pings(app, "cpu:0", name)
consumer = Consumer(app, ["sd"], slots, pings, lambda: True)
watchdog = ConsumerWatchdog(
    pings.send, lambda: pings.is_connected,
    watchdog_seconds=float(watchdog_seconds), on_stalled=lambda: os._exit(73),
)
pings.listen(watchdog.received)

def answer(job_id):
    if job_id == "hold":
        while not (folder / "let-go").exists():
            threading.Event().wait(0.02)
    if job_id == "block-the-loop":
        consumer._celery_consumer.call_soon(threading.Event().wait)
    if job_id == "forget-the-queues":
        consumer._celery_consumer.call_soon(consumer._celery_consumer.task_consumer.cancel)
    (folder / f"{job_id}.{name}").touch()

def ready():
    watchdog.start()
    (folder / f"ready.{name}").touch()

sys.exit(consumer.run(name, answer, on_ready=ready, on_shutdown=watchdog.stop))
"""


class Consumers:
    """Processes that consume the same queues, each under its watchdog."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder, self.prefix = url, folder, f"watchdog-{secrets.token_hex(4)}:"
        self.dispatcher = Dispatcher(make_celery(url, self.prefix, ["sd"]))
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", PROGRAM, self.url, self.prefix, str(self.folder), name]
        self.processes.append(subprocess.Popen([*command, str(WATCHDOG_SECONDS)], cwd=ROOT))
        process = self.processes[-1]
        wait_for(lambda: (self.folder / f"ready.{name}").exists() or process.poll() is not None, 60)
        assert process.poll() is None
        return process

    def dispatch(self, job_id: str) -> None:
        assert self.dispatcher.dispatch([Dispatch(job_id, "sd", "interactive", 1, 1, 20, 128, 128, 1)])

    def heard(self, job_id: str, name: str) -> bool:
        wait_for((self.folder / f"{job_id}.{name}").exists, 60)
        return True


@pytest.fixture
def consumers(services: Embedded, tmp_path: Path) -> Iterator[Consumers]:
    started = Consumers(services.broker_url, tmp_path)
    yield started
    for process in started.processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("fault", ["block-the-loop", "forget-the-queues"])
def test_S39_a_worker_that_hears_nothing_ends_and_another_takes_its_bells(
    consumers: Consumers, fault: str
) -> None:
    stalled = consumers.start("stalled")
    consumers.dispatch(fault)
    assert consumers.heard(fault, "stalled")
    assert stalled.wait(30) == EXIT_STALLED
    consumers.dispatch("job")
    consumers.start("next")
    assert consumers.heard("job", "next")


def test_S39_a_worker_whose_slots_are_all_taken_is_not_stalled(consumers: Consumers) -> None:
    process = consumers.start("busy")
    for _ in range(2):
        consumers.dispatch("hold")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3 * WATCHDOG_SECONDS)
    (consumers.folder / "let-go").touch()
    consumers.dispatch("job")
    assert consumers.heard("job", "busy")
    process.terminate()
    assert process.wait(30) == 0
    broker = redis.Redis.from_url(consumers.url)
    left = [key for key in broker.scan_iter(f"{consumers.prefix}*") if b"busy" in key]
    broker.close()
    assert left == []


@contextmanager
def broker(port: int, folder: Path) -> Iterator[None]:
    """A Valkey of the test's own, which keeps nothing."""
    command = [str(valkey_program()), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    server = subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            wait_for(lambda: answers(client), 20)
        yield
    finally:
        server.kill()
        server.wait()


def answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def test_S39_a_broker_that_is_away_for_longer_than_the_watchdog_ends_no_worker(tmp_path: Path) -> None:
    port = choose_ports(["broker"])["broker"]
    consumers = Consumers(f"redis://127.0.0.1:{port}/0", tmp_path)
    with broker(port, tmp_path):
        process = consumers.start("patient")
        consumers.dispatch("before")
        assert consumers.heard("before", "patient")
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3 * WATCHDOG_SECONDS)
        with broker(port, tmp_path):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2 * WATCHDOG_SECONDS)
            consumers.dispatch("after")
            assert consumers.heard("after", "patient")
            process.terminate()
            assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def wait_for(holds: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
