"""The application as it is served."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2

from local.endpoints import Embedded
from tests.served import served


def test_a_server_that_is_told_to_stop_lets_its_waiters_go(migrated: Embedded, api_key: str) -> None:
    headers = {"Authorization": f"Bearer {api_key}"}
    with (
        served(migrated.environment_of("api")) as server,
        httpx2.Client(base_url=server.url, headers=headers, trust_env=False, timeout=70) as client,
    ):
        job = client.post("/v1/jobs", json={"prompt": "a red heart"}).json()
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(client.get, f"/v1/jobs/{job['id']}?wait=60")
            # The waiter is inside once the server has answered what was sent after it.
            while not waiting.running():
                threading.Event().wait(0.01)
            for _ in range(20):
                client.get(f"/v1/jobs/{job['id']}")
            began = time.monotonic()
            server.process.terminate()
            answer = waiting.result(30)
        assert (answer.status_code, answer.json()["state"]) == (200, "queued")
        assert server.process.wait(30) == 0
        assert time.monotonic() - began < 20
