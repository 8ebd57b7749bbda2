"""The promises of the Procfile: honcho runs it as it stands, a job goes through it, and it ends whole."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from local.endpoints import Embedded
from local.ports import choose_ports
from settings import ROOT
from tests.fixtures.databases import empty_database

STARTED = ["web", "worker-cpu", "sweeper", "flower", "worker-none"]
FLOWER_AUTH = ("calotype", "flower-password")


@pytest.fixture
def environment(services: Embedded, tmp_path: Path, kept_self_tests: dict[str, str]) -> dict[str, str]:
    """What a person would export: a database without a schema, and a prefix that names these processes."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("CALOTYPE_", "FLOWER_"))},
        **services.environment,
        **kept_self_tests,
        # The Procfile says `python`, which must be the one with calotype's packages.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CALOTYPE_DATABASE_URL": empty_database(services, "procfile"),
        "CALOTYPE_BROKER_KEY_PREFIX": f"procfile_{secrets.token_hex(4)}:",
        "CALOTYPE_RUN_DIR": str(tmp_path / "run"),
        "FLOWER_BASIC_AUTH": ":".join(FLOWER_AUTH),
    }


@pytest.mark.timeout(900)
def test_honcho_runs_the_procfile_and_a_job_goes_through_it(
    environment: dict[str, str], tmp_path: Path
) -> None:
    release = honcho(environment, "start", "release")
    assert release.returncode == 0, release.stdout
    ports = choose_ports(["web", "flower"])
    environment["FLOWER_PORT"] = str(ports["flower"])
    headers = {"Authorization": f"Bearer {make_key(environment)}"}
    with started(environment, tmp_path / "honcho.log", ports["web"]) as process:
        with httpx2.Client(base_url=f"http://127.0.0.1:{ports['web']}", headers=headers, timeout=60) as api:
            wait_for(lambda: answers(api, "/healthz"), 120)
            body = {"prompt": "a red heart", "num_inference_steps": 1, "width": 64, "height": 64}
            answer = api.post("/v1/jobs", json=body)
            assert answer.status_code in (200, 202), answer.text
            job = answer.json()
            wait_for(lambda: show(api, job["id"])["state"] in ("succeeded", "failed"), 300)
            assert show(api, job["id"])["state"] == "succeeded"
        with httpx2.Client(base_url=f"http://127.0.0.1:{ports['flower']}", timeout=10) as flower:
            wait_for(lambda: answers(flower, "/healthcheck"), 120)
            assert flower.get("/").status_code == 401
            assert flower.get("/", auth=FLOWER_AUTH).status_code == 200
        running = children(environment)
        for name in STARTED:
            # The shell between honcho and a process knows the name of its line.
            assert any(child.environ().get("HONCHO_PROCESS_NAME") == f"{name}.1" for child in running), name
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM
    wait_for(lambda: not children(environment), 30)


def test_a_process_that_cannot_start_takes_the_others_down_and_honcho_says_so(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment["CALOTYPE_LOG_LEVEL"] = "loud"
    with started(environment, tmp_path / "honcho.log", choose_ports(["web"])["web"]) as process:
        assert process.wait(120) != 0
    # Whichever of them ended first: the others may be told to stop before they have said anything.
    assert "log_level" in (tmp_path / "honcho.log").read_text().lower()
    wait_for(lambda: not children(environment), 30)


def honcho(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


def command(*arguments: str) -> list[str]:
    # An .env of the developer's must not take part.
    return [sys.executable, "-m", "honcho", "--no-colour", "-e", os.devnull, *arguments]


@contextmanager
def started(environment: dict[str, str], log: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """`honcho start` while the body runs; whatever happens, nothing of it is left."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command("start", "-p", str(port), *STARTED),
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    except BaseException:
        sys.stderr.write(log.read_text(errors="replace"))
        raise
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            for child in children(environment):
                child.kill()


def children(environment: dict[str, str]) -> list[psutil.Process]:
    """Every process that carries this test's broker prefix in its environment."""
    prefix = environment["CALOTYPE_BROKER_KEY_PREFIX"]
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CALOTYPE_BROKER_KEY_PREFIX") == prefix:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def make_key(environment: dict[str, str]) -> str:
    made = subprocess.run(
        [sys.executable, "-m", "cli", "keys", "create", "procfile", "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return str(json.loads(made.stdout)["api_key"])


def show(api: httpx2.Client, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = api.get(f"/v1/jobs/{job_id}", params={"wait": 10}).json()
    return job


def answers(client: httpx2.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx2.TransportError:
        return False


def wait_for(holds: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
