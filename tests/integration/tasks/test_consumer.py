"""The promise about consuming: whatever arrives, slots come back, and bulk tasks need no broker."""

import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.events.receiver import EventReceiver as Receiver
from kombu import Queue

from local.binaries import valkey_program
from local.endpoints import Embedded
from local.ports import choose_ports
from settings import ROOT
from storage.dispatches import Dispatch
from tasks.app import POLL_SECONDS, make_celery
from tasks.dispatch import Dispatcher
from tasks.queues import GENERATE

PROGRAM = """
import sys, threading
from pathlib import Path
from tasks.app import make_celery
from storage.dispatches import Dispatch
from tasks.consumer import Consumer
from tasks.dispatch import job_message
from tasks.pings import Pings
from tasks.task_events import TaskEvent, TaskEvents

url, prefix, folder, has_others = sys.argv[1:]
folder = Path(folder)
slots = {"interactive": 2, "bulk": 1}
app = make_celery(url, prefix, ["sd"])
closed_tiers = lambda: ["sd"] if (folder / "closed").exists() else []
consumer = Consumer(
    app, ["sd"], slots, Pings(app, "cpu:0", "test"), lambda: has_others == "yes", closed_tiers
)
task_events = TaskEvents()
task_events.listen()

def start_bulk_jobs():
    # As a claim would: a file that the test makes names a bulk job to be started in this process.
    while True:
        for path in list(folder.glob("start.*")):
            path.unlink()
            job_id = path.name.partition(".")[2]
            consumer.receive(job_message(Dispatch(job_id, "sd", "bulk", 1, 0, 20, 128, 128, 1)))
        threading.Event().wait(0.02)

def ready():
    threading.Thread(target=start_bulk_jobs, daemon=True).start()
    (folder / "ready").touch()

def answer(job_id):
    if job_id.startswith("hold"):
        (folder / (job_id + ".held")).touch()
        while not (folder / "let-go").exists():
            threading.Event().wait(0.02)
    task_events.tell(job_id, TaskEvent("task-succeeded"))
    (folder / job_id).touch()

sys.exit(consumer.run("test", answer, on_ready=ready, on_shutdown=lambda: None))
"""


class Listener:
    """A consumer in a process of its own, with two interactive slots and a thread for one bulk job."""

    def __init__(self, url: str, folder: Path, prefix: str | None = None, *, has_others: bool = True) -> None:
        self.url = url
        self.prefix = prefix or f"consumer-{secrets.token_hex(4)}:"
        self.folder = folder
        self.celery = make_celery(url, self.prefix, ["sd"])
        self.dispatcher = Dispatcher(self.celery)
        command = [
            sys.executable,
            "-c",
            PROGRAM,
            url,
            self.prefix,
            str(folder),
            "yes" if has_others else "no",
        ]
        self.process = subprocess.Popen(command, cwd=ROOT)

    def dispatch(self, job_id: str) -> None:
        assert self.dispatcher.dispatch([Dispatch(job_id, "sd", "interactive", 1, 1, 20, 128, 128, 1)])

    def start_bulk(self, job_id: str) -> None:
        """Start a bulk job, whose claim the process would hold."""
        (self.folder / f"start.{job_id}").touch()

    def heard(self, name: str, seconds: float = 60) -> bool:
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
        listener.celery.send_task(GENERATE, args=arguments, queue="sd.interactive")
    eta = {"eta": "9999-99-99"}
    listener.celery.send_task(GENERATE, args=["late", 1], queue="sd.interactive", headers=eta)
    listener.celery.send_task(GENERATE, args=["old", 1], queue="sd.interactive", expires=-10)
    for number in range(4):
        listener.dispatch(f"job-{number}")
    assert all(listener.heard(f"job-{number}") for number in range(4))


def test_a_full_lane_is_left_alone_and_bulk_jobs_start(listener: Listener) -> None:
    for job_id in ("hold-1", "hold-2"):
        listener.dispatch(job_id)
        assert listener.heard(f"{job_id}.held")
    listener.dispatch("waits")
    listener.start_bulk("now")
    assert listener.heard("now")
    assert not (listener.folder / "waits").exists()
    (listener.folder / "let-go").touch()
    assert listener.heard("waits")


def test_a_closed_tier_is_left_alone_until_it_is_open_again(listener: Listener) -> None:
    (listener.folder / "closed").touch()
    time.sleep(2 * POLL_SECONDS)  # the poll that waits in the broker has ended
    listener.dispatch("waits")
    listener.start_bulk("now")
    assert listener.heard("now"), "what was claimed already starts all the same"
    assert not listener.heard("waits", 3 * POLL_SECONDS)
    (listener.folder / "closed").unlink()
    assert listener.heard("waits")


def test_a_worker_tells_its_statistics_to_flower(listener: Listener) -> None:
    answered = listener.celery.control.inspect(timeout=30, limit=1).stats()
    assert answered is not None
    [found] = answered.values()
    assert found["pool"]["max-concurrency"] == 4


def test_the_events_of_a_job_that_ends_while_its_worker_stops_are_sent(listener: Listener) -> None:
    with events(listener, "task-succeeded") as found:
        listener.dispatch("before")
        listener.dispatch("hold-1")
        assert listener.heard("before")
        assert listener.heard("hold-1.held")
        listener.process.terminate()
        (listener.folder / "let-go").touch()
        assert listener.process.wait(30) == 0
        wait_for(lambda: {"before", "hold-1"} <= found.keys())


def test_a_bulk_job_takes_no_interactive_slot(listener: Listener) -> None:
    listener.start_bulk("hold-1")
    assert listener.heard("hold-1.held")
    for number in (2, 3):
        listener.dispatch(f"hold-{number}")
        assert listener.heard(f"hold-{number}.held")


def test_a_message_for_the_bulk_queue_of_the_version_before_stays_there_and_harms_nothing(
    listener: Listener,
) -> None:
    before = make_celery(listener.url, listener.prefix, ["sd"])
    before.amqp.queues.add(Queue("sd.bulk"))
    before.send_task(GENERATE, args=["old", 1], queue="sd.bulk")
    listener.start_bulk("now")
    assert listener.heard("now")
    listener.dispatch("later")
    assert listener.heard("later")
    assert not (listener.folder / "old").exists()


def test_S23_a_job_that_is_dispatched_twice_takes_two_slots_and_gives_both_back(listener: Listener) -> None:
    """Its task has the same id both times."""
    listener.dispatch("hold-1")
    listener.dispatch("hold-1")
    assert listener.heard("hold-1.held")
    listener.dispatch("waits")
    listener.start_bulk("now")
    assert listener.heard("now")
    assert not (listener.folder / "waits").exists(), "both slots are taken"
    (listener.folder / "let-go").touch()
    assert listener.heard("waits")
    for number in range(4):
        listener.dispatch(f"later-{number}")
    assert all(listener.heard(f"later-{number}") for number in range(4))


def test_S23_a_task_that_was_revoked_by_its_id_is_answered_when_its_job_is_dispatched_again(
    listener: Listener,
) -> None:
    replies = listener.celery.control.revoke("again", reply=True, timeout=5)
    assert "flagged as revoked" in str(replies)
    listener.dispatch("again")
    assert listener.heard("again")
    replies = listener.celery.control.revoke("bulk-again", reply=True, timeout=5)
    assert "flagged as revoked" in str(replies)
    listener.start_bulk("bulk-again")
    assert listener.heard("bulk-again")


def test_the_event_of_a_received_bulk_job_is_that_of_an_interactive_one(listener: Listener) -> None:
    """But for its lane, and for what the clock and the counter of the process add."""
    with events(listener) as found:
        listener.dispatch("one")
        listener.start_bulk("other")
        wait_for(lambda: {"one", "other"} <= found.keys())
    of_one, of_other = found["one"], found["other"]
    assert set(of_other) == set(of_one)
    text = str({name: of_other[name] for name in sorted(of_other) if name not in CHANGING})
    expected = str({name: of_one[name] for name in sorted(of_one) if name not in CHANGING})
    assert text == expected.replace("'one'", "'other'").replace("interactive", "bulk")
    assert "'lane': 'bulk', 'steps': 20, 'size': '128x128', 'images': 1" in of_other["kwargs"]


CHANGING = ("timestamp", "local_received", "clock")


class EventReceiver(Receiver):
    """Flower's side of the events: it says when it hears them."""

    listens = threading.Event()

    def on_consume_ready(self, *_: Any, **__: Any) -> None:
        self.listens.set()


@contextmanager
def events(listener: Listener, type_: str = "task-received") -> Iterator[dict[str, dict[str, Any]]]:
    """The events of a type of the process, by the id of the task, as Flower gets them."""
    found: dict[str, dict[str, Any]] = {}
    with listener.celery.connection_for_read() as connection:
        handlers = {type_: lambda event: found.__setitem__(event["uuid"], event)}
        receiver = EventReceiver(connection, handlers=handlers, app=listener.celery)
        receiver.listens = threading.Event()
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        thread.start()
        assert receiver.listens.wait(30)
        yield found
        receiver.should_stop = True
        thread.join()


@contextmanager
def broker(port: int, folder: Path) -> Iterator[None]:
    """A Valkey of the test's own, which keeps nothing."""
    command = [str(valkey_program()), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    server = subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            wait_for(lambda: answers(client))
        yield
    finally:
        server.kill()
        server.wait()


def answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def test_bulk_jobs_start_while_the_broker_is_away_and_their_events_follow(tmp_path: Path) -> None:
    port = choose_ports(["broker"])["broker"]
    with broker(port, tmp_path):
        listener = Listener(f"redis://127.0.0.1:{port}/0", tmp_path)
        assert listener.heard("ready", 60)
    try:
        for number in range(3):  # more than one at a time, and more than the process has noticed
            listener.start_bulk(f"away-{number}")
            assert listener.heard(f"away-{number}")
        with broker(port, tmp_path), events(listener) as found:
            listener.dispatch("back")
            assert listener.heard("back", 60)
            listener.start_bulk("after")
            assert listener.heard("after")
            wait_for(lambda: {f"away-{number}" for number in range(3)} | {"back", "after"} <= found.keys())
            listener.process.terminate()
            assert listener.process.wait(30) == 0
    finally:
        listener.process.kill()
        listener.process.wait()


def test_a_lane_that_is_full_when_the_broker_comes_back_is_still_full(tmp_path: Path) -> None:
    port = choose_ports(["broker"])["broker"]
    with broker(port, tmp_path):
        listener = Listener(f"redis://127.0.0.1:{port}/0", tmp_path)
        assert listener.heard("ready", 60)
        for job_id in ("hold-1", "hold-2"):
            listener.dispatch(job_id)
            assert listener.heard(f"{job_id}.held")
    try:
        with broker(port, tmp_path), events(listener) as found:
            listener.dispatch("waits")
            listener.start_bulk("now")
            wait_for(lambda: "now" in found, 60)  # its event is sent once the worker is back
            listener.start_bulk("later")
            wait_for(lambda: "later" in found)  # and this one when its loop has turned since
            assert "waits" not in found
            (tmp_path / "let-go").touch()
            assert listener.heard("waits", 60)
            listener.process.terminate()
            assert listener.process.wait(30) == 0
    finally:
        listener.process.kill()
        listener.process.wait()


def test_a_job_goes_to_the_worker_that_holds_none(tmp_path: Path) -> None:
    """One that holds a job asks the broker now and then; the other waits there."""
    port = choose_ports(["broker"])["broker"]
    url, folders = f"redis://127.0.0.1:{port}/0", [tmp_path / "busy", tmp_path / "idle"]
    for folder in folders:
        folder.mkdir()

    def is_answered(job_id: str) -> bool:
        return any((folder / job_id).exists() for folder in folders)

    with broker(port, tmp_path), redis.Redis(port=port) as client, ExitStack() as stack:
        busy = stack.enter_context(running(Listener(url, folders[0])))
        busy.dispatch("hold-1")
        assert busy.heard("hold-1.held", 60)
        idle = stack.enter_context(running(Listener(url, folders[1], busy.prefix)))
        assert idle.heard("ready", 60)
        for number in range(20):
            wait_for(lambda: client.info("clients")["blocked_clients"] == 1)
            idle.dispatch(f"job-{number}")
            wait_for(partial(is_answered, f"job-{number}"))
        # Between two polls that wait, for some milliseconds, one that asks may be first.
        assert len(list(folders[0].glob("job-*"))) <= 2


@pytest.mark.parametrize("has_others", [True, False])
def test_a_worker_that_holds_a_job_waits_in_the_broker_only_if_there_is_no_other(
    tmp_path: Path, has_others: bool
) -> None:
    port = choose_ports(["broker"])["broker"]
    url = f"redis://127.0.0.1:{port}/0"
    with broker(port, tmp_path), redis.Redis(port=port) as client, ExitStack() as stack:
        listener = stack.enter_context(running(Listener(url, tmp_path, has_others=has_others)))
        listener.dispatch("hold-1")
        assert listener.heard("hold-1.held", 60)
        asked = commands(client, "lmpop")
        if has_others:
            wait_for(lambda: commands(client, "lmpop") >= asked + 10)
            assert client.info("clients")["blocked_clients"] == 0
        else:
            wait_for(lambda: client.info("clients")["blocked_clients"] == 1)
            assert commands(client, "lmpop") == asked


def commands(client: "redis.Redis", name: str) -> int:
    """How often a command was called."""
    found: dict[str, Any] = client.info("commandstats").get(f"cmdstat_{name}", {"calls": 0})
    return int(found["calls"])


def test_a_worker_that_holds_a_job_goes_on_while_the_broker_is_full(tmp_path: Path) -> None:
    """A full server refuses commands that could take memory, and in a transaction all commands."""
    port = choose_ports(["broker"])["broker"]
    with broker(port, tmp_path), redis.Redis(port=port) as client, ExitStack() as stack:
        listener = stack.enter_context(running(Listener(f"redis://127.0.0.1:{port}/0", tmp_path)))
        listener.dispatch("hold-1")
        assert listener.heard("hold-1.held", 60)
        client.config_set("maxmemory", 1)
        asked = commands(client, "lmpop")
        wait_for(lambda: commands(client, "lmpop") >= asked + 10)
        client.config_set("maxmemory", 0)
        listener.dispatch("later")
        assert listener.heard("later")


def test_a_worker_whose_broker_refuses_to_be_asked_waits_there_instead(tmp_path: Path) -> None:
    """Its rights may be those of an earlier version."""
    port = choose_ports(["broker"])["broker"]
    with broker(port, tmp_path), redis.Redis(port=port) as client, ExitStack() as stack:
        client.execute_command("ACL", "SETUSER", "default", "-lmpop")
        listener = stack.enter_context(running(Listener(f"redis://127.0.0.1:{port}/0", tmp_path)))
        listener.dispatch("hold-1")
        assert listener.heard("hold-1.held", 60)
        wait_for(lambda: client.info("clients")["blocked_clients"] == 1)
        listener.dispatch("later")
        assert listener.heard("later")


def test_a_worker_that_holds_a_job_takes_what_no_other_one_takes(listener: Listener) -> None:
    listener.dispatch("hold-1")
    assert listener.heard("hold-1.held")
    for number in range(5):
        listener.dispatch(f"job-{number}")
        assert listener.heard(f"job-{number}")


@contextmanager
def running(listener: Listener) -> Iterator[Listener]:
    """A listener that is stopped at the end, whatever it holds."""
    try:
        yield listener
    finally:
        listener.process.kill()
        listener.process.wait()


def wait_for(holds: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
