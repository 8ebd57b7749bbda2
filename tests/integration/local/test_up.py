import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from local.endpoints import remove
from local.state import State
from settings import ROOT

START_SECONDS = 240


class Up:
    """A `calotype up` in a process of its own, seen through its ready file alone."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder, self.file, self.output = folder, folder.parent / "ready.json", folder.parent / "output"
        command = [sys.executable, "-m", "cli", "up", "--data-dir", str(folder)]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, "--ready-file", str(self.file)],
                cwd=ROOT,
                env={**os.environ, **settings},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ready(self) -> dict[str, Any]:
        self.wait_for(self.file.exists)
        document: dict[str, Any] = json.loads(self.file.read_text())
        return document

    def wait_for(self, condition: Callable[[], object], seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("up") / "data"
    yield path
    with State.open(path, wait_seconds=60) as state:
        remove(state)


@pytest.fixture
def settings_of_up(kept_self_tests: dict[str, str], one_worker: dict[str, str]) -> dict[str, str]:
    return kept_self_tests | one_worker


@pytest.fixture
def up(folder: Path, settings_of_up: dict[str, str]) -> Iterator[Up]:
    up = Up(folder, settings_of_up)
    yield up
    up.stop()


def get(url: str, key: str | None = None) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, b""


def holders(folder: Path) -> list[int]:
    """Every process that inherited the lock of the data folder."""
    lock = (folder / "lock").stat()
    found = set()
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.path.samestat(entry.stat(), lock):
                found.add(int(entry.parts[2]))
        except OSError:
            continue
    return sorted(found)


def pids(ready: dict[str, Any]) -> dict[str, int]:
    return {entry["name"]: entry["pid"] for entry in [*ready["services"], *ready["workers"]]}


@pytest.mark.timeout(900)
def test_up_is_ready_when_everything_answers_and_leaves_nothing_behind(up: Up, folder: Path) -> None:
    ready = up.ready()
    assert up.file.stat().st_mode & 0o777 == 0o600
    assert get(f"{ready['url']}/healthz")[0] == 200
    assert get(f"{ready['url']}/v1/tiers", ready["api_key"])[0] == 200
    assert get(f"{ready['url']}/v1/jobs")[0] == 401
    assert get(ready["flower_url"])[0] == 401
    assert [worker["device"] for worker in ready["workers"]]
    for worker in ready["workers"]:
        assert {queue.split(".")[0] for queue in worker["queues"]} == set(worker["tiers"])
    names = ["postgres", "valkey", "s3", "web", "webhooks", "sweep", "flower"]
    assert [service["name"] for service in ready["services"]] == names
    assert set(pids(ready).values()) <= set(holders(folder))
    secrets = [*State.read(folder).secrets.values(), ready["api_key"]]
    for pid in holders(folder):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        assert not [secret for secret in secrets if secret in line]

    assert up.stop(signal.SIGINT) == 0
    assert holders(folder) == []
    assert not up.file.exists()


def test_up_that_is_stopped_while_it_starts_leaves_nothing_behind(up: Up, folder: Path) -> None:
    up.wait_for(lambda: len(holders(folder)) > 1)
    assert up.stop() == 0
    assert holders(folder) == []
    assert "stopped" in up.output.read_text()


@pytest.mark.timeout(900)
def test_second_up_finds_its_key_and_its_data_after_a_kill(
    up: Up, folder: Path, settings_of_up: dict[str, str]
) -> None:
    ready = up.ready()
    before = State.read(folder)
    assert (ready["api_key"], ready["url"]) == (before.api_key, f"http://127.0.0.1:{before.ports['web']}")
    up.process.kill()
    up.process.wait()
    up.file.unlink()
    said_before = up.output.read_text()
    second = Up(folder, settings_of_up)
    try:
        again = second.ready()
        assert (again["api_key"], again["url"]) == (ready["api_key"], ready["url"])
        assert not set(pids(again).values()) & set(pids(ready).values())
        assert set(pids(ready).values()).isdisjoint(holders(folder))
        said = second.output.read_text().removeprefix(said_before)
        assert "checking the schema" in said
        assert "applying the migrations" not in said

        worker = again["workers"][0]["pid"]
        os.kill(worker, signal.SIGKILL)
        second.wait_for(lambda: worker not in pids(second.ready()).values())
        assert second.ready()["workers"][0]["device"] == again["workers"][0]["device"]
    finally:
        assert second.stop() == 0
    assert holders(folder) == []
