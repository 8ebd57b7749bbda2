"""The promise about consuming: whatever arrives, a lane's slots come back, on a real broker."""

import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from local.endpoints import Embedded
from settings import ROOT
from storage.dispatches import Dispatch
from tasks.app import make_celery
from tasks.dispatch import Dispatcher
from tasks.queues import GENERATE

PROGRAM = """
import sys, threading
from pathlib import Path
from tasks.app import make_celery
from tasks.consumer import Consumer
from tasks.pings import Pings

url, prefix, folder = sys.argv[1:]
folder = Path(folder)
slots = {"interactive": 2, "bulk": 1}
app = make_celery(url, prefix, ["sd"])
consumer = Consumer(app, ["sd"], slots, Pings(app, "cpu:0", "test"))

def answer(job_id):
    if job_id.startswith("hold"):
        (folder / (job_id + ".held")).touch()
        while not (folder / "let-go").exists():
            threading.Event().wait(0.02)
    (folder / job_id).touch()

sys.exit(consumer.run("test", answer, on_ready=(folder / "ready").touch, on_shutdown=lambda: None))
"""


class Listener:
    """A consumer in a process of its own, with two interactive slots and one bulk slot."""

    def __init__(self, url: str, folder: Path) -> None:
        self.prefix = f"consumer-{secrets.token_hex(4)}:"
        self.folder = folder
        self.celery = make_celery(url, self.prefix, ["sd"])
        self.dispatcher = Dispatcher(self.celery)
        command = [sys.executable, "-c", PROGRAM, url, self.prefix, str(folder)]
        self.process = subprocess.Popen(command, cwd=ROOT)

    def dispatch(self, job_id: str, lane: str) -> None:
        assert self.dispatcher.dispatch([Dispatch(job_id, "sd", lane, 1, 1, 20, 128, 128, 1)])

    def heard(self, name: str, seconds: float = 20) -> bool:
        deadline = time.monotonic() + seconds
        while not (self.folder / name).exists():
            if time.monotonic() > deadline or self.process.poll() is not None:
                return False
            time.sleep(0.02)
        return True


@pytest.fixture
def listener(services: Embedded, tmp_path: Path):  # type: ignore[no-untyped-def]
    listener = Listener(services.broker_url, tmp_path)
    assert listener.heard("ready", 60)
    yield listener
    (tmp_path / "let-go").touch()
    listener.process.terminate()
    assert listener.process.wait(30) == 0


def test_forged_and_malformed_bells_leave_every_slot_free(listener: Listener) -> None:
    for arguments in (["job_x", 1, 2], [], [None, 1], [{"a": 1}]):
        for lane in ("interactive", "bulk"):
            listener.celery.send_task(GENERATE, args=arguments, queue=f"sd.{lane}")
    listener.celery.send_task(GENERATE, args=["late", 1], queue="sd.bulk", headers={"eta": "9999-99-99"})
    listener.celery.send_task(GENERATE, args=["old", 1], queue="sd.bulk", expires=-10)
    for number in range(4):
        for lane in ("interactive", "bulk"):
            listener.dispatch(f"{lane}-{number}", lane)
    assert all(listener.heard(f"{lane}-{number}") for number in range(4) for lane in ("interactive", "bulk"))


def test_a_full_lane_is_left_alone_and_the_other_is_heard(listener: Listener) -> None:
    listener.dispatch("hold-1", "bulk")
    assert listener.heard("hold-1.held")
    listener.dispatch("waits", "bulk")
    listener.dispatch("now", "interactive")
    assert listener.heard("now")
    assert not (listener.folder / "waits").exists()
    (listener.folder / "let-go").touch()
    assert listener.heard("waits")


def test_S23_a_job_that_is_dispatched_twice_takes_two_slots_and_gives_both_back(listener: Listener) -> None:
    """Its task has the same id both times."""
    listener.dispatch("hold-1", "interactive")
    listener.dispatch("hold-1", "interactive")
    assert listener.heard("hold-1.held")
    listener.dispatch("waits", "interactive")
    listener.dispatch("now", "bulk")
    assert listener.heard("now")
    assert not (listener.folder / "waits").exists(), "both slots are taken"
    (listener.folder / "let-go").touch()
    assert listener.heard("waits")
    for number in range(4):
        listener.dispatch(f"later-{number}", "interactive")
    assert all(listener.heard(f"later-{number}") for number in range(4))


def test_S23_a_task_that_was_revoked_by_its_id_is_answered_when_its_job_is_dispatched_again(
    listener: Listener,
) -> None:
    replies = listener.celery.control.revoke("again", reply=True, timeout=5)
    assert "flagged as revoked" in str(replies)
    listener.dispatch("again", "interactive")
    assert listener.heard("again")
