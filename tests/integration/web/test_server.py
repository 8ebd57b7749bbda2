"""The application under gunicorn, as it is run."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from local.endpoints import Embedded
from settings import ROOT


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(migrated: Embedded, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "gunicorn", "web.app:create_app()", "--worker-class", "gthread"]
    command += ["--threads", "8", "--bind", f"127.0.0.1:{port}", "--no-control-socket"]
    environment = {**os.environ, **migrated.environment_of("api"), "CALOTYPE_WEB_THREADS": "8"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        yield process
        process.kill()


def answering(client: httpx2.Client) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            client.get("/healthz").raise_for_status()
            return
        except httpx2.TransportError:
            assert time.monotonic() < deadline
            threading.Event().wait(0.1)


def test_a_server_that_is_told_to_stop_lets_its_waiters_go(
    server: subprocess.Popen[bytes], port: int, api_key: str
) -> None:
    headers = {"Authorization": f"Bearer {api_key}"}
    url = f"http://127.0.0.1:{port}"
    with httpx2.Client(base_url=url, headers=headers, trust_env=False, timeout=70) as client:
        answering(client)
        job = client.post("/v1/jobs", json={"prompt": "a red heart"}).json()
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(client.get, f"/v1/jobs/{job['id']}?wait=60")
            # The waiter is inside once the server has answered what was sent after it.
            while not waiting.running():
                threading.Event().wait(0.01)
            for _ in range(20):
                client.get("/healthz")
            began = time.monotonic()
            server.terminate()
            answer = waiting.result(30)
        assert (answer.status_code, answer.json()["state"]) == (200, "queued")
        assert server.wait(30) == 0
        assert time.monotonic() - began < 20
