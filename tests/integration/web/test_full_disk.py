"""An upload that finds the disk of temporary files full is answered so, and leaves nothing behind.

The API runs in a mount namespace of its own, where `TMPDIR` is a file system of two megabytes. A user without
rights may mount that too, where the kernel allows user namespaces; elsewhere these tests are skipped.
"""

import gzip
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from local.endpoints import Embedded
from tests.served import Served, served

NUM_BYTES = 2 << 20
MOUNT = f'mount -t tmpfs -o size={NUM_BYTES} none "$TMPDIR" && exec "$@"'
FULL = {"status": 503, "code": "disk_full"}


def in_namespace(command: str) -> list[str]:
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command, "sh"]


@dataclass
class Api:
    """A server with a small disk, what it logs, and the key of a fresh account."""

    server: Served
    logs: Path
    key: str

    def post(self, path: str, content: bytes, *, name: str = "file", **headers: str) -> httpx2.Response:
        fields = {"Authorization": f"Bearer {self.key}", **headers}
        if "Content-Encoding" in headers:
            boundary = b"--b\r\nContent-Disposition: form-data; name=file; filename=f\r\n\r\n"
            fields["Content-Type"] = "multipart/form-data; boundary=b"
            body = gzip.compress(boundary + content + b"\r\n--b--\r\n")
            return httpx2.post(
                self.server.url + path, headers=fields, content=body, trust_env=False, timeout=120
            )
        return httpx2.post(
            self.server.url + path, headers=fields, files={name: content}, trust_env=False, timeout=120
        )

    def num_batches(self) -> int:
        address, headers = f"{self.server.url}/v1/batches", {"Authorization": f"Bearer {self.key}"}
        return len(httpx2.get(address, headers=headers, trust_env=False, timeout=120).json()["batches"])

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.logs.read_text().splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def server(migrated: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    place = tmp_path_factory.mktemp("small")
    environment = {**migrated.environment_of("api"), "TMPDIR": str(place), "CALOTYPE_LOG_FORMAT": "json"}
    tried = subprocess.run(
        [*in_namespace(MOUNT), "true"], env={**os.environ, **environment}, capture_output=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.decode()}")
    logs = tmp_path_factory.mktemp("logs") / "api.log"
    with logs.open("wb") as file, served(environment, within=in_namespace(MOUNT), logs=file) as running:
        yield running, logs


@pytest.fixture
def api(server: tuple[Served, Path], api_key: str) -> Api:
    return Api(*server, api_key)


def csv_of(num_bytes: int) -> bytes:
    line = b"a red heart on a white table, in the light of the morning, %07d\n"
    return b"prompt\n" + b"".join(line % number for number in range(num_bytes // len(line % 0)))


SHORT_ROWS = b"prompt\n" + b"a\n" * 60_000


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        pytest.param(csv_of(3 << 20), {}, id="the body"),
        pytest.param(csv_of(3 << 19), {}, id="the form's copy of the body"),
        pytest.param(csv_of(3 << 20), {"Content-Encoding": "gzip"}, id="a compressed body"),
        pytest.param(SHORT_ROWS, {}, id="the jobs of the rows"),
    ],
)
def test_a_batch_that_finds_the_disk_full_is_answered_503_and_can_be_sent_again(
    api: Api, content: bytes, headers: dict[str, str]
) -> None:
    num_logged = len(api.logged())
    key = {"Idempotency-Key": "the same"}
    answer = api.post("/v1/batches", content, **key, **headers)
    problem = answer.json()
    assert {name: problem[name] for name in FULL} == FULL, problem
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Retry-After"]
    assert re.search("temporary files is full.*try again", problem["detail"])
    (line,) = [line for line in api.logged()[num_logged:] if line["level"] == "error"]
    assert line["event"] == "temporary_space_full"
    assert Path(line["directory"]).name.startswith("small")
    assert 0 <= line["num_free_bytes"] < NUM_BYTES // 10
    assert api.num_batches() == 0
    # What it had written is gone, and the key is not used up.
    answer = api.post("/v1/batches", csv_of(600_000), **key)
    assert answer.status_code == 202, answer.text
    assert api.num_batches() == 1


def test_a_file_that_finds_the_disk_full_is_answered_503(api: Api) -> None:
    for num_bytes in (3 << 20, 3 << 19):
        answer = api.post("/v1/files", bytes(num_bytes))
        assert {name: answer.json()[name] for name in FULL} == FULL
