"""S8: a wait whose client has gone is over, and one for which there was no place is not said to have been."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest

from local.endpoints import Embedded
from local.ports import choose_ports
from tests.served import Served, served

MAX_WAITERS = 20
SOON = 60.0


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return choose_ports(["metrics"])["metrics"]


@pytest.fixture(scope="module")
def server(migrated: Embedded, metrics_port: int) -> Iterator[Served]:
    settings = {"CALOTYPE_METRICS_PORT": str(metrics_port), "CALOTYPE_MAX_WAITERS": str(MAX_WAITERS)}
    with served(migrated.environment_of("api") | settings) as found:
        yield found


def num_waiters(metrics_port: int) -> float:
    text = httpx2.get(f"http://127.0.0.1:{metrics_port}/metrics", trust_env=False).text
    (line,) = (line for line in text.splitlines() if line.startswith("calotype_waiters_threads "))
    return float(line.split()[1])


def until_num_waiters(metrics_port: int, wanted: int) -> float:
    began = time.monotonic()
    while num_waiters(metrics_port) != wanted:
        assert time.monotonic() - began < SOON
        threading.Event().wait(0.02)
    return time.monotonic() - began


@pytest.mark.parametrize("ends", ["closed", "half closed", "reset"])
def test_S8_the_place_of_a_client_that_hung_up_is_free_again_and_nobody_is_told_of_a_wait_that_was_not(
    server: Served, metrics_port: int, api_key: str, ends: str
) -> None:
    body = b'{"prompt": "a red heart"}'
    request = (
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nPrefer: wait=60\r\n"
        b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b" % (api_key.encode(), len(body), body)
    )
    headers = {"Authorization": f"Bearer {api_key}", "Prefer": "wait=0.5"}
    with (
        ExitStack() as stack,
        httpx2.Client(base_url=server.url, headers=headers, trust_env=False, timeout=SOON) as client,
    ):
        lines = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), SOON))
            for _ in range(MAX_WAITERS)
        ]
        for line in lines:
            line.sendall(request)
        until_num_waiters(metrics_port, MAX_WAITERS)
        refused = client.post("/v1/jobs", json={"prompt": "a red heart"})
        assert (refused.status_code, refused.headers.get("Preference-Applied")) == (202, None)
        for line in lines:
            if ends == "half closed":
                line.shutdown(socket.SHUT_WR)
            else:
                if ends == "reset":
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                line.close()
        assert until_num_waiters(metrics_port, 0) < 2
        waited = client.post("/v1/jobs", json={"prompt": "a red heart"})
        assert (waited.status_code, waited.headers["Preference-Applied"]) == (202, "wait=0.5")
        if ends == "half closed":
            # Who only stopped sending still gets the answer: the job was accepted.
            assert all(line.recv(65_536).startswith(b"HTTP/1.1 202 ") for line in lines)
