"""A worker's ready file is there while it is ready; its log says how the seconds of its start were spent."""

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.ready import ReadyFile, StartTimes

FACTS = {"device": "cpu:0", "tiers": ["sd"], "queues": ["sd.interactive"], "determinism": "exact"}


@dataclass
class Pulse:
    """An engine, as its last step shows it."""

    ticked_at: float
    is_idle: bool


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ready.json"


def test_a_ready_file_comes_goes_and_comes_again_with_its_facts(path: Path) -> None:
    file = ReadyFile(path)
    file.show(is_ready=True)
    assert not path.exists(), "not before it begins"
    file.begin(**FACTS)
    assert json.loads(path.read_text()).items() >= FACTS.items()
    file.show(is_ready=False)
    assert not path.exists()
    file.show(is_ready=True)
    assert json.loads(path.read_text()).items() >= FACTS.items()
    file.end()
    file.show(is_ready=True)
    assert not path.exists(), "a worker that drains does not become ready again"


@pytest.mark.parametrize(
    ("pulse", "is_ready"),
    [
        (Pulse(ticked_at=-1000, is_idle=True), True),
        (Pulse(ticked_at=-1000, is_idle=False), False),
        (Pulse(ticked_at=1000, is_idle=False), True),
    ],
    ids=["nothing to do", "no step lately", "a step lately"],
)
def test_a_worker_is_ready_while_its_engine_steps_or_has_no_work(
    path: Path, pulse: Pulse, is_ready: bool
) -> None:
    pulse.ticked_at += time.monotonic()
    file = ReadyFile(path)
    file.begin(**FACTS)
    file.show(is_ready=not is_ready)
    watching = threading.Thread(target=file.watch, args=(pulse, 0.1, 0.01))
    watching.start()
    deadline = time.monotonic() + 10
    while path.exists() != is_ready and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists() == is_ready
    file.end()
    watching.join(10)
    assert not watching.is_alive()


def test_S38_a_start_is_told_by_its_parts() -> None:
    instants = iter([3.0, 8.0, 8.5])
    times = StartTimes(lambda: next(instants))
    times.took("import")
    times.took("load", of_which=("self_test", 4.0))
    times.took("connect")
    assert times.seconds == {"import": 3.0, "self_test": 4.0, "load": 1.0, "connect": 0.5, "total": 8.5}


def test_S38_a_start_begins_with_its_process() -> None:
    times = StartTimes()
    times.took("import")
    assert 0 < times.seconds["total"] < 3600
