"""A running service of any kind: how one image is asked of it, and its processes.

It owns HTTP, and stopping (`SIGSTOP`) a whole service while another one is measured. It does not know how a
service is started, nor any figure.
"""

import hashlib
import json
import signal
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any, Protocol
from urllib.parse import urlsplit

import psutil

from bench.plane.load import Connection, body_of
from engine.request import GenerationRequest

PROBE_SECONDS, WARMING_SECONDS = 0.25, 120.0


class NoImage(RuntimeError):
    """A service has answered a request without an image."""

    code = "no_image"
    retryable = False


class Draw(Protocol):
    """Asks for one image and returns its PNG file; raises `NoImage`, `OSError` or `HTTPException`."""

    def __call__(self, request: GenerationRequest, *, seconds: float) -> bytes:
        """Wait at most so many seconds."""


@dataclass
class Service:
    """A service that runs: `name` for tables, how it draws, and the ids of its first processes."""

    name: str
    draw: Draw
    pids: Sequence[int]
    settings: dict[str, Any] = field(default_factory=dict)
    settles_seconds: float = 0.0
    """How long it takes after a stop until all its parts know each other again."""

    def processes(self) -> list[psutil.Process]:
        """All its processes, parents first."""
        found: dict[int, psutil.Process] = {}
        for pid in self.pids:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                for one in (process, *process.children(recursive=True)):
                    found.setdefault(one.pid, one)
        return list(found.values())

    def cpu_seconds(self) -> float:
        """CPU seconds of all its processes so far, with those of children that have ended."""
        total = 0.0
        for one in self.processes():
            with suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                total += times.user + times.system
        return total

    def kill_worker(self) -> int:
        """Kill the process that holds a model and has worked most; return its id.

        Raises `RuntimeError` if no process is left.
        """
        sizes: list[tuple[int, psutil.Process]] = []
        for one in self.processes():
            with suppress(psutil.NoSuchProcess):
                sizes.append((one.memory_info().rss, one))
        if not sizes:
            raise RuntimeError(f"{self.name} has no process left")
        most = max(size for size, _ in sizes)
        workers = [one for size, one in sizes if size > most / 2]
        victim = max(workers, key=lambda one: one.cpu_times().user)
        victim.send_signal(signal.SIGKILL)
        return victim.pid

    def suspend(self) -> None:
        """Stop all its processes, parents first, so that no parent sees a child that does not answer."""
        for one in self.processes():
            with suppress(psutil.NoSuchProcess):
                one.suspend()

    def resume(self) -> None:
        """Let all go on, children first, and wait until it works as before."""
        for one in reversed(self.processes()):
            with suppress(psutil.NoSuchProcess):
                one.resume()
        time.sleep(self.settles_seconds)


@contextmanager
def awake(service: Service, warming: Sequence[GenerationRequest]) -> Iterator[None]:
    """Let a stopped service run while the body runs; it is warm by then."""
    service.resume()
    try:
        warm(service, warming)
        yield
    finally:
        service.suspend()


def warm(service: Service, warming: Sequence[GenerationRequest]) -> None:
    """Have these images drawn, all at once; they count for nothing."""
    with ThreadPoolExecutor(max(1, len(warming))) as pool:
        for drawn in [pool.submit(draw_somehow, service, one, seconds=WARMING_SECONDS) for one in warming]:
            drawn.result()


def draw_somehow(service: Service, request: GenerationRequest, *, seconds: float) -> bytes:
    """Draw one image, however often a service that has just started or resumed must be asked."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return service.draw(request, seconds=deadline - time.monotonic())
        except (NoImage, OSError, HTTPException):
            if time.monotonic() > deadline:
                raise
            time.sleep(PROBE_SECONDS)


@dataclass(frozen=True)
class Route:
    """How a peer is asked: a POST of the request's JSON; `is_list` if it takes and answers lists."""

    port: int
    path: str
    is_list: bool = False

    def __call__(self, request: GenerationRequest, *, seconds: float) -> bytes:
        """Return the PNG file of the answer, on a connection of its own."""
        body = body_of(request)
        if self.is_list:
            body = json.dumps({"requests": [json.loads(body)]}).encode()
        status, answer = _ask(f"http://127.0.0.1:{self.port}{self.path}", seconds, body)
        if status != 200:
            raise NoImage(f"{status}: {answer[:200]!r}")
        return b64decode(json.loads(answer)[0]) if self.is_list else answer


@dataclass(frozen=True)
class Jobs:
    """How our service is asked: `Prefer: wait`, then the image by its link, compared with its SHA-256."""

    url: str
    api_key: str

    def __call__(self, request: GenerationRequest, *, seconds: float) -> bytes:
        """Return the PNG file of the job's image, on connections of its own."""
        deadline = time.monotonic() + seconds
        client = Connection(self.url, self.api_key)
        try:
            job = client.submit(body_of(request), wait=max(1, min(60, int(seconds))))
            job = client.wait(job, deadline - time.monotonic())
        except RuntimeError as error:
            raise NoImage(str(error)) from error
        finally:
            client.close()
        if job["state"] != "succeeded":
            raise NoImage(f"{job['id']}: {job['state']} {job.get('error')}")
        image = job["images"][0]
        status, file = _ask(image["url"], max(1.0, deadline - time.monotonic()))
        if status != 200 or hashlib.sha256(file).hexdigest() != image["sha256"]:
            raise NoImage(f"{job['id']}: its image is not what its row says ({status})")
        return file


def _ask(url: str, seconds: float, body: bytes | None = None) -> tuple[int, bytes]:
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=max(0.1, seconds))
    path = f"{address.path}?{address.query}" if address.query else address.path
    headers = {"Content-Type": "application/json"} if body is not None else {}
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
