"""The API in two processes behind one port: both serve, and neither's end ends the other."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from local.endpoints import Embedded
from settings import ROOT
from tests.integration.web.conftest import Draw

SOON = 120.0


@dataclass
class Api:
    """A parent with two children, and what they log."""

    process: "subprocess.Popen[str]"
    port: int
    metrics_port: int
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def follow(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("{"):
                self.lines.append(json.loads(line))

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in list(self.lines) if line["event"] == event]

    def pids(self) -> dict[int, int]:
        """The newest process in each place."""
        return {line["process"]: line["pid"] for line in self.logged("web_process_ready")}

    def get(self, path: str, **options: Any) -> httpx2.Response:
        """Over a connection of its own, which any of them may accept."""
        return httpx2.get(self.url + path, trust_env=False, timeout=SOON, **options)


def until(condition: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.05)


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])


@contextmanager
def two_processes(environment: Mapping[str, str]) -> Iterator[Api]:
    port, metrics_port = free_ports()
    settings = {"CALOTYPE_WEB_PROCESSES": "2", "CALOTYPE_METRICS_PORT": str(metrics_port)}
    with subprocess.Popen(
        [sys.executable, "-m", "cli", "api", f"--port={port}"],
        cwd=ROOT,
        env={**os.environ, **environment, **settings},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        api = Api(process, port, metrics_port)
        reader = threading.Thread(target=api.follow)
        reader.start()
        try:
            until(lambda: len(api.pids()) == 2, "not ready")
            yield api
        finally:
            children = psutil.Process(process.pid).children() if process.poll() is None else []
            process.kill()
            for child in children:
                child.kill()
            reader.join(SOON)


@pytest.fixture(scope="module")
def api(migrated: Embedded) -> Iterator[Api]:
    with two_processes(migrated.environment_of("api")) as running:
        yield running


def who_serves(api: Api) -> set[int]:
    return {line["process"] for line in api.logged("request")}


def serve_both(api: Api) -> None:
    """Ask until both have answered."""
    deadline = time.monotonic() + SOON
    while who_serves(api) != {0, 1}:
        assert time.monotonic() < deadline
        together([lambda: api.get("/openapi.json")] * 8)


def together(calls: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)


def test_both_serve_and_their_metrics_are_on_one_port_told_apart_by_a_label(api: Api) -> None:
    serve_both(api)
    before = requests_by_process(api)
    for _ in range(20):
        assert api.get("/openapi.json").status_code == 200
    after = requests_by_process(api)
    assert set(after) == {"0", "1"}
    assert sum(after.values()) - sum(before.values()) == 20


def scrape(api: Api) -> dict[str, list[Any]]:
    address = f"http://127.0.0.1:{api.metrics_port}/metrics"
    text = httpx2.get(address, trust_env=False, timeout=SOON).raise_for_status().text
    return {family.name: list(family.samples) for family in text_string_to_metric_families(text)}


def requests_by_process(api: Api) -> dict[str, float]:
    found: dict[str, float] = {}
    for sample in scrape(api)["calotype_requests"]:
        index = sample.labels["process"]
        found[index] = found.get(index, 0) + sample.value
    return found


def test_what_is_read_from_postgres_is_exported_once_and_what_each_process_has_by_each(api: Api) -> None:
    families = scrape(api)
    assert {sample.labels["process"] for sample in families["calotype_queue_jobs"]} == {"0"}
    assert {sample.labels["process"] for sample in families["calotype_connections"]} == {"0", "1"}
    assert len(families["process_resident_memory_bytes"]) == 2


def logs_of(api: Api, request_id: str) -> list[dict[str, Any]]:
    return [line for line in api.logged("request") if line["request_id"] == request_id]


def test_a_job_submitted_to_one_process_is_awaited_in_the_other_until_it_ends(
    api: Api, api_key: str, draw: Draw
) -> None:
    headers = {"Authorization": f"Bearer {api_key}"}
    body = {"prompt": "a red heart"}
    by_process: dict[int, str] = {}
    deadline = time.monotonic() + SOON
    while len(by_process) < 2:  # until each has accepted one
        assert time.monotonic() < deadline
        response = httpx2.post(
            api.url + "/v1/jobs", json=body, headers=headers, trust_env=False, timeout=SOON
        )
        request_id = response.headers["X-Request-ID"]
        until(partial(logs_of, api, request_id))
        (line,) = logs_of(api, request_id)
        by_process.setdefault(line["process"], response.json()["id"])
    waits: list[httpx2.Response] = []
    threads = [
        threading.Thread(
            target=lambda job_id=job_id: waits.append(
                api.get(f"/v1/jobs/{job_id}", params={"wait": "50"}, headers=headers)
            )
        )
        for job_id in by_process.values()
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    until(lambda: sum(s.value for s in scrape(api)["calotype_waiters_threads"]) == len(threads))
    assert all(s.value for s in scrape(api)["calotype_waiters_threads"]), "both have waits"
    for job_id in by_process.values():
        draw(job_id)
    for thread in threads:
        thread.join(SOON)
    assert [response.json()["state"] for response in waits] == ["succeeded"] * len(threads)


def test_one_that_is_killed_under_load_is_restarted_while_the_other_serves(api: Api) -> None:
    serve_both(api)
    before, stop = api.pids(), threading.Event()
    answered: list[int] = []
    errors: list[Exception] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                answered.append(api.get("/openapi.json").status_code)
            except httpx2.TransportError as error:
                errors.append(error)
            stop.wait(0.1)  # the restart needs a processor too

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(answered) > 20)
    os.kill(before[1], signal.SIGKILL)
    num_answered = len(answered)
    until(lambda: len(answered) > num_answered + 20, "the other serves on")
    until(lambda: api.pids()[1] != before[1], "it is restarted")
    stop.set()
    for thread in threads:
        thread.join(SOON)
    assert set(answered) == {200}
    assert len(errors) <= len(threads), "only what the killed one had accepted is lost"
    assert api.pids()[0] == before[0]
    (ended,) = api.logged("web_process_ended")
    assert (ended["process"], ended["code"]) == (1, -signal.SIGKILL)


def test_sigterm_drains_both(migrated: Embedded, api_key: str) -> None:
    headers = {"Authorization": f"Bearer {api_key}"}
    with two_processes(migrated.environment_of("api")) as api:
        job = httpx2.post(
            api.url + "/v1/jobs", json={"prompt": "a"}, headers=headers, trust_env=False, timeout=SOON
        ).json()
        waits: list[httpx2.Response] = []
        threads = [
            threading.Thread(
                target=lambda: waits.append(
                    api.get(f"/v1/jobs/{job['id']}", params={"wait": "50"}, headers=headers)
                )
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        until(lambda: sum(s.value for s in scrape(api)["calotype_waiters_threads"]) == len(threads))
        api.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(SOON)
        assert [(one.status_code, one.json()["state"]) for one in waits] == [(200, "queued")] * len(threads)
        assert api.process.wait(SOON) == 0
        with pytest.raises(httpx2.ConnectError):
            api.get("/healthz")


def test_the_children_of_a_parent_that_is_killed_drain_and_end(migrated: Embedded) -> None:
    with two_processes(migrated.environment_of("api")) as api:
        children = [psutil.Process(pid) for pid in api.pids().values()]
        api.process.kill()
        _, alive = psutil.wait_procs(children, timeout=SOON)
        assert not alive


def test_children_that_cannot_start_end_the_parent(migrated: Embedded, tmp_path: Path) -> None:
    config = tmp_path / "calotype.toml"
    config.write_text("nonsense")
    environment = {**os.environ, **migrated.environment_of("api"), "CALOTYPE_CONFIG": str(config)}
    answer = subprocess.run(
        [sys.executable, "-m", "cli", "api", f"--port={free_ports()[0]}"],
        cwd=ROOT,
        env={**environment, "CALOTYPE_WEB_PROCESSES": "2"},
        capture_output=True,
        timeout=SOON * 2,
        check=False,
    )
    assert answer.returncode == 1


def test_a_port_that_is_taken_ends_the_parent(migrated: Embedded) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = subprocess.run(
            [sys.executable, "-m", "cli", "api", f"--port={taken.getsockname()[1]}"],
            cwd=ROOT,
            env={**os.environ, **migrated.environment_of("api"), "CALOTYPE_WEB_PROCESSES": "2"},
            capture_output=True,
            text=True,
            timeout=SOON * 2,
            check=False,
        )
    assert answer.returncode == 3
    assert "not_listening" in answer.stderr
