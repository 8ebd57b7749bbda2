"""The promise of `calotype up --detach`: a whole life in the background, seen through the commands alone."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from local.endpoints import remove
from local.state import State
from local.tree import PROGRAM
from settings import ROOT

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data folder; whatever still runs in it is stopped at the end."""
    folder = tmp_path / "data"
    yield folder
    calotype(folder, "down", "--now")
    with State.open(folder, wait_seconds=60) as state:
        remove(state)


def calotype(data_dir: Path, *arguments: str, **changes: str) -> "subprocess.CompletedProcess[str]":
    with start(data_dir, *arguments, **changes) as process:
        written, said = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, written, said)


def start(data_dir: Path, *arguments: str, **changes: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CALOTYPE_")}
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=data_dir.parent,
        env={**environment, "PYTHONPATH": str(ROOT), "CALOTYPE_DATA_DIR": str(data_dir), **changes},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lives(pid: int) -> bool:
    """Whether it runs. What has ended stays listed until its parent, here the system's first, looks."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_start_that_fails_says_why_and_a_relative_path_is_one_from_here(
    data_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "calotype.toml").write_text("default_model = 3\n")
    answer = calotype(data_dir, "up", "--detach", CALOTYPE_CONFIG="calotype.toml")
    assert answer.returncode == 1
    assert "default_model" in answer.stderr
    assert str(data_dir / "logs" / "up.log") in answer.stderr


def test_ctrl_c_before_all_is_ready_leaves_nothing_running(data_dir: Path) -> None:
    with start(data_dir, "up", "--detach") as process:
        assert process.stderr is not None
        assert "starting in" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)
    assert process.returncode == 130
    assert calotype(data_dir, "status").returncode == 3


def test_up_runs_in_the_background_until_down_has_stopped_all_of_it(
    data_dir: Path, tmp_path: Path, kept_self_tests: dict[str, str], one_worker: dict[str, str]
) -> None:
    answer = calotype(data_dir, "up", "--detach", **kept_self_tests, **one_worker)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    ready = json.loads((data_dir / "run" / "ready.json").read_text())
    assert ready["url"] in answer.stdout
    assert ready["api_key"] not in answer.stdout, "what is written to a pipe may be a log"

    status = json.loads(calotype(data_dir, "status", "--json").stdout)
    assert (status["state"], status["pid"]) == ("running", ready["pid"])
    pids = [status["pid"], *(one["pid"] for one in (*status["services"], *status["workers"]))]
    assert all(map(lives, pids))
    again = calotype(data_dir, "up", "--detach")
    assert (again.returncode, ready["url"] in again.stdout) == (0, True)
    for option, value in (("--port", "1"), ("--host", "127.0.0.2")):
        other = calotype(data_dir, "up", "--detach", option, value)
        assert (other.returncode, "calotype down" in other.stderr) == (1, True)

    assert "calotype" in answer.stdout, "how to set the variables"
    num_keys = len(json.loads(calotype(data_dir, "keys", "list", "--json").stdout))
    for changes in ({}, {"CALOTYPE_URL": "http://elsewhere", "CALOTYPE_API_KEY": "calo_x_y"}):
        told = calotype(data_dir, "env", **changes)
        assert (told.returncode, told.stderr) == (0, "")
        shown = subprocess.run(
            ["sh", "-euc", told.stdout + 'echo "$CALOTYPE_URL $CALOTYPE_API_KEY"'],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert shown == f"{ready['url']} {ready['api_key']}\n"
    assert len(json.loads(calotype(data_dir, "keys", "list", "--json").stdout)) == num_keys

    told = calotype(data_dir, "env", "--role", "worker")
    shown = subprocess.run(
        ["sh", "-euc", told.stdout + 'echo "$CALOTYPE_DATABASE_URL $CALOTYPE_PUBLIC_URL"'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert re.fullmatch(rf"postgresql://worker:\w+@127\.0\.0\.1:\S+ {re.escape(ready['url'])}\n", shown)
    unknown = calotype(data_dir, "env", "--role", "owner")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "--role: 'owner' is none of api, worker" in unknown.stderr

    path = tmp_path / "heart.png"
    prompt = "a green circle on a black background"
    job = calotype(data_dir, "submit", prompt, "--steps", "4", "-o", str(path))
    assert job.returncode == 0, job.stderr
    assert path.read_bytes().startswith(b"\x89PNG")

    logs = calotype(data_dir, "logs", "-n", "1000").stdout
    assert {line.partition(" ")[0] for line in logs.splitlines()} >= {"up", "web", "postgres", "worker-cpu0"}
    assert ready["api_key"] not in logs
    assert prompt not in logs

    calotype(data_dir, "submit", prompt, "--steps", "150")
    down = calotype(data_dir, "down")
    assert (down.returncode, down.stdout.splitlines()[-1]) == (0, "stopped")
    assert [pid for pid in pids if lives(pid)] == []
    assert calotype(data_dir, "status").returncode == 3
    assert calotype(data_dir, "down").returncode == 0
    told = calotype(data_dir, "env")
    assert (told.returncode, told.stdout) == (3, "")
    assert told.stderr == f"calotype: nothing runs in {data_dir}: start it by `calotype up`\n"
