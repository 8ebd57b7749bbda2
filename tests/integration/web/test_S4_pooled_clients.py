"""S4: clients that keep their connections send a thousand requests each, answered early in every way.

None may break.

A client that was handed a connection which the server then ends, or that is cut while it still sends, has an
error here instead of a status.
"""

import http.client
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2
import pytest
import requests

from local.endpoints import Embedded
from tests.served import Served, served

NUM_REQUESTS = 1000
SOON = 60.0
SPACES = b" " * 3_000_000
NODE_CLIENT = Path(__file__).with_name("pooled_client.mjs")


@dataclass(frozen=True)
class Request:
    """One request, and the status that it must get."""

    status: int
    method: str
    path: str
    headers: dict[str, str]
    size: int = 0
    """Bytes of a body of spaces."""
    text: str | None = None
    """Or the body itself."""
    chunked: bool = False

    def body(self) -> bytes | Iterator[bytes] | None:
        if self.text is not None:
            return self.text.encode()
        if not self.size:
            return None
        return self._pieces() if self.chunked else SPACES[: self.size]

    def _pieces(self) -> Iterator[bytes]:
        for start in range(0, self.size, 50_000):
            yield SPACES[start : min(start + 50_000, self.size)]


def mixed(api_key: str) -> list[Request]:
    """Every kind of early answer and some others, in an order that chance made once."""
    key = {"Authorization": f"Bearer {api_key}"}
    is_json = {**key, "Content-Type": "application/json"}
    job = json.dumps({"prompt": "a red heart"})
    frequent = [
        Request(200, "GET", "/healthz", {}),
        Request(200, "GET", "/healthz", {}),
        Request(200, "HEAD", "/v1/tiers", key),
        Request(204, "OPTIONS", "/v1/jobs", {}),
        Request(401, "POST", "/v1/jobs", {"Content-Type": "application/json"}, text=job),
        Request(401, "POST", "/v1/jobs", {"Content-Type": "application/json"}, 100_000),
        Request(401, "POST", "/v1/batches", {"Content-Type": "multipart/form-data; boundary=x"}, 100_000),
        Request(404, "POST", "/v1/nothing", is_json, 100_000),
        Request(405, "PUT", "/v1/jobs", is_json, 100_000),
        Request(413, "POST", "/v1/jobs", is_json, 100_000),
        Request(413, "POST", "/v1/jobs", is_json, 100_000, chunked=True),
        Request(413, "POST", "/session", {"Content-Type": "application/x-www-form-urlencoded"}, 70_000),
        Request(415, "POST", "/v1/jobs", {**key, "Content-Type": "text/plain"}, 100_000),
        Request(415, "POST", "/v1/jobs", {**is_json, "Content-Encoding": "br"}, 100_000),
        Request(422, "POST", "/v1/jobs", is_json, text='{"prompt": 1}'),
    ]
    rare = [
        Request(202, "POST", "/v1/jobs", is_json, text=job),
        Request(401, "POST", "/v1/batches", {"Content-Type": "multipart/form-data; boundary=x"}, 3_000_000),
        Request(413, "POST", "/v1/jobs", is_json, 3_000_000),
        Request(413, "POST", "/v1/jobs", is_json, 3_000_000, chunked=True),
        Request(431, "GET", "/v1/jobs", {**key, "X-Large": "a" * 40_000}),
    ]
    chance = random.Random(4)
    chosen = rare * 5 + chance.choices(frequent, k=NUM_REQUESTS - len(rare) * 5)
    chance.shuffle(chosen)
    return chosen


@pytest.fixture(scope="module")
def server(migrated: Embedded) -> Iterator[Served]:
    with served(migrated.environment_of("api")) as found:
        yield found


def test_S4_a_thousand_requests_of_each_pooled_client_and_none_is_broken(
    server: Served, api_key: str
) -> None:
    wanted = mixed(api_key)
    assert len(wanted) == NUM_REQUESTS
    with ThreadPoolExecutor() as pool:
        found = {client.__name__: pool.submit(client, server, wanted) for client in CLIENTS}
    for name, statuses in found.items():
        wrong = [
            (request.method, request.path, request.size, request.chunked, request.status, status)
            for request, status in zip(wanted, statuses.result(), strict=True)
            if status != str(request.status)
        ]
        assert wrong == [], name


def by_requests(server: Served, wanted: list[Request]) -> list[str]:
    with requests.Session() as session:
        session.trust_env = False

        def ask(request: Request) -> int:
            answer = session.request(
                request.method,
                server.url + request.path,
                headers=request.headers,
                data=request.body(),
                timeout=SOON,
                allow_redirects=False,
            )
            return answer.status_code

        return [outcome(ask, request) for request in wanted]


def by_httpx2(server: Served, wanted: list[Request]) -> list[str]:
    with httpx2.Client(base_url=server.url, trust_env=False, timeout=SOON) as client:

        def ask(request: Request) -> int:
            answer = client.request(
                request.method, request.path, headers=request.headers, content=request.body()
            )
            return answer.status_code

        return [outcome(ask, request) for request in wanted]


def by_http_client(server: Served, wanted: list[Request]) -> list[str]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)) as line:

        def ask(request: Request) -> int:
            line.request(
                request.method,
                request.path,
                body=request.body(),
                headers={**request.headers, **({"Transfer-Encoding": "chunked"} if request.chunked else {})},
                encode_chunked=request.chunked,
            )
            answer = line.getresponse()
            answer.read()
            return answer.status

        return [outcome(ask, request) for request in wanted]


def by_fetch(server: Served, wanted: list[Request]) -> list[str]:
    node = shutil.which("node")
    if node is None:
        assert not os.environ.get("CI"), "node is missing"
        return [str(request.status) for request in wanted]  # the other clients are tried all the same
    done = subprocess.run(
        [node, str(NODE_CLIENT)],
        input=json.dumps({"url": server.url, "requests": [asdict(request) for request in wanted]}),
        capture_output=True,
        text=True,
        check=True,
        timeout=4 * SOON,
    )
    statuses: list[str] = json.loads(done.stdout)
    return statuses


def outcome(ask: Callable[[Request], int], request: Request) -> str:
    try:
        return str(ask(request))
    except (requests.RequestException, httpx2.HTTPError, http.client.HTTPException, OSError) as error:
        return repr(error)


CLIENTS = (by_requests, by_httpx2, by_http_client, by_fetch)
