"""The load on the API: requests over connections that stay open, in a closed or an open loop.

It knows HTTP alone. It uses `http.client`, which takes little CPU beside the service.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from typing import Any, TypeVar
from urllib.parse import urlsplit

from engine.request import GenerationRequest

ANSWER_SECONDS = 120.0
WAIT_SECONDS = 60
PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.5, 4.0
"""Before a client that was not let wait asks again, twice as long each time: a hundred clients that ask
twice a second keep the API busy."""
IDLE_SECONDS = 60.0
"""The API closes a connection that was idle for 150 s (`web.front.limits`)."""
MAX_IN_FLIGHT = 128
OPEN_STATES = ("queued", "running")
BOUNDARY = "calotype-bench"

Item = TypeVar("Item")
Result = TypeVar("Result")


class Connection:
    """One connection with an API key, for one thread; made anew after `IDLE_SECONDS` without a request."""

    def __init__(self, url: str, api_key: str) -> None:
        address = urlsplit(url)
        self._http = HTTPConnection(address.hostname or "", address.port, timeout=ANSWER_SECONDS)
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._used_at = time.monotonic()

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        type_: str = "application/json",
        wait: int = 0,
    ) -> tuple[int, Any]:
        """Send a request; return the status and the JSON. With `wait`, prefer an answer when the job ends."""
        headers = {**self._headers, **({"Content-Type": type_} if body is not None else {})}
        if wait:
            headers["Prefer"] = f"wait={wait}"
        text, response = self._answer(method, path, body, headers)
        return response.status, json.loads(text) if text else None

    def text(self, path: str) -> str:
        """GET a text; raises `RuntimeError` if it is refused."""
        text, response = self._answer("GET", path, None, self._headers)
        if response.status != 200:
            raise RuntimeError(f"GET {path}: {response.status}")
        return text.decode()

    def _answer(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[bytes, HTTPResponse]:
        if time.monotonic() - self._used_at > IDLE_SECONDS:
            self._http.close()
        self._http.request(method, path, body, headers)
        response = self._http.getresponse()
        text = response.read()
        self._used_at = time.monotonic()
        return text, response

    def submit(self, body: bytes, *, wait: int = 0) -> dict[str, Any]:
        """Submit a job; return it. Raises `RuntimeError` if it is refused."""
        status, job = self.ask("POST", "/v1/jobs", body, wait=wait)
        if status not in (200, 202):
            raise RuntimeError(f"POST /v1/jobs: {status} {job}")
        return dict(job)

    def draw(self, body: bytes) -> dict[str, Any]:
        """Submit a job and return it once it has ended."""
        return self.wait(self.submit(body, wait=WAIT_SECONDS))

    def wait(self, job: dict[str, Any], seconds: float = math.inf) -> dict[str, Any]:
        """Return a job once it has ended, or after so many seconds as it is then.

        An answer at once means that too many requests wait. Without a pause, clients would keep the API busy.
        """
        deadline, pause = time.monotonic() + seconds, PAUSE_SECONDS
        while job["state"] in OPEN_STATES and time.monotonic() < deadline:
            asked_at = time.monotonic()
            wait = max(1, int(min(deadline - asked_at, WAIT_SECONDS)))
            _, job = self.ask("GET", f"/v1/jobs/{job['id']}?wait={wait}")
            if job["state"] not in OPEN_STATES or time.monotonic() - asked_at >= PAUSE_SECONDS:
                pause = PAUSE_SECONDS
                continue
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, MAX_PAUSE_SECONDS)
        return job

    def upload(self, rows: Iterable[GenerationRequest]) -> str:
        """Upload a CSV of these requests; return the batch's id. Raises `RuntimeError` if it is refused."""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="bench.csv"\r\n\r\n'
        body = f"{head}{csv_of(rows)}\r\n--{BOUNDARY}--\r\n".encode()
        status, batch = self.ask(
            "POST", "/v1/batches", body, type_=f"multipart/form-data; boundary={BOUNDARY}"
        )
        if status not in (200, 201, 202):
            raise RuntimeError(f"POST /v1/batches: {status} {batch}")
        return str(batch["id"])

    def cancel_batch(self, batch_id: str) -> None:
        """Cancel what is left of a batch."""
        status, answer = self.ask("DELETE", f"/v1/batches/{batch_id}")
        if status not in (200, 202, 204, 409):
            raise RuntimeError(f"DELETE /v1/batches/{batch_id}: {status} {answer}")

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


def body_of(request: GenerationRequest) -> bytes:
    """The JSON of `POST /v1/jobs`; the seconds that are left are its deadline."""
    deadline = {} if request.seconds_left is None else {"deadline_seconds": request.seconds_left}
    return json.dumps(_fields(request) | deadline).encode()


def csv_of(requests: Iterable[GenerationRequest]) -> str:
    """The same requests as a CSV."""
    lines = [",".join(_NAMES)]
    for request in requests:
        fields = _fields(request)
        prompt = str(fields["prompt"]).replace('"', '""')
        lines.append(",".join([f'"{prompt}"', *(str(fields[name]) for name in _NAMES[1:])]))
    return "\n".join(lines) + "\n"


_NAMES = ("prompt", "width", "height", "num_inference_steps", "guidance_scale", "seed")


def _fields(request: GenerationRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in _NAMES}


def in_closed_loop(
    connect: Callable[[], Connection],
    items: Sequence[Item],
    work: Callable[[Connection, Item], Result],
    *,
    num: int,
) -> list[Result]:
    """Do the work for each item on `num` connections, each item as soon as a connection is free."""
    found: dict[int, Result] = {}
    lock, numbered = threading.Lock(), iter(enumerate(items))

    def client() -> None:
        connection = connect()
        try:
            while True:
                with lock:
                    entry = next(numbered, None)
                if entry is None:
                    return
                found[entry[0]] = work(connection, entry[1])
        finally:
            connection.close()

    with ThreadPoolExecutor(num) as pool:
        for future in [pool.submit(client) for _ in range(num)]:
            future.result()
    return [found[number] for number in range(len(items))]


@dataclass(frozen=True)
class Answered:
    """A request of an open loop: when it was due, how long its answer took from then, and its job."""

    due_seconds: float
    latency_seconds: float
    job: dict[str, Any]


def in_open_loop(connect: Callable[[], Connection], due: Sequence[tuple[float, bytes]]) -> list[Answered]:
    """Draw each body when it is due, in seconds from now, whether or not earlier ones have ended."""
    spare: list[Connection] = []
    begun_at = time.monotonic()

    def draw(seconds: float, body: bytes) -> Answered:
        connection = spare.pop() if spare else connect()
        job = connection.draw(body)
        spare.append(connection)
        return Answered(seconds, time.monotonic() - begun_at - seconds, job)

    with ThreadPoolExecutor(MAX_IN_FLIGHT) as pool:
        futures = []
        for seconds, body in due:
            time.sleep(max(0.0, begun_at + seconds - time.monotonic()))
            futures.append(pool.submit(draw, seconds, body))
        answered = [future.result() for future in futures]
    for connection in spare:
        connection.close()
    return answered
