"""A service of calotype's shape over real HTTP, whose speed, faults and limits a test chooses."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PICTURE = b"the bytes of an image"
SERVED_MODEL = {
    "name": "fake",
    "default": True,
    "default_num_inference_steps": 10,
    "default_guidance_scale": 2.0,
}
TIER = {
    "name": "sd",
    "model": "fake",
    "default_width": 128,
    "default_height": 128,
    "can_serve": True,
    "num_live_workers": 1,
    "determinism": "exact",
}


@dataclass
class Faults:
    """What the service does wrong; `at` decides by the number of the job, counted from 0."""

    refuses: Callable[[int], bool] = lambda _: False
    drops: Callable[[int], bool] = lambda _: False
    fails: Callable[[int], bool] = lambda _: False
    spoils: Callable[[int], bool] = lambda _: False
    never_ends: Callable[[int], bool] = lambda _: False


@dataclass
class FakeService:
    """Draws one image at a time, each in `draw_seconds`; lets `max_waiters` requests wait for theirs."""

    draw_seconds: float = 0.0
    max_waiters: int = 10_000
    faults: Faults = field(default_factory=Faults)
    stall: Callable[[int], float] = lambda _: 0.0
    """Seconds that nothing is drawn before this job."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    canceled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock, self.device = threading.Condition(), threading.Lock()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.num_waiters = 0
        self.url = ""

    def accept(self, body: dict[str, Any]) -> dict[str, Any]:
        """A new job, which a thread draws."""
        with self.lock:
            number = len(self.jobs)
            self.bodies.append(body)
            job: dict[str, Any] = {
                "id": f"job_{number}",
                "state": "queued",
                "created_at": now(),
                "finished_at": None,
                "images": [],
                "error": None,
                "timings": {},
                "tier": "sd",
                "worker": "w1",
            }
            self.jobs[job["id"]] = job
        if not self.faults.never_ends(number):
            threading.Thread(target=self._draw, args=(job, number, body), daemon=True).start()
        return job

    def _draw(self, job: dict[str, Any], number: int, body: dict[str, Any]) -> None:
        with self.device:
            time.sleep(self.stall(number) + self.draw_seconds)
        sha256 = hashlib.sha256(PICTURE + str(body["seed"]).encode()).hexdigest()
        spoilt = "/spoilt" if self.faults.spoils(number) else ""
        image = {
            "index": 0,
            "url": f"{self.url}/images/{body['seed']}{spoilt}",
            "width": body["width"],
            "height": body["height"],
            "sha256": sha256,
        }
        has_failed = self.faults.fails(number)
        with self.lock:
            job.update(
                state="failed" if has_failed else "succeeded",
                finished_at=now(),
                images=[] if has_failed else [image],
                error={"code": "generation_failed"} if has_failed else None,
                timings={"device_seconds": self.draw_seconds, "mean_step_batch": 1.0},
            )
            self.lock.notify_all()

    def waited(self, job: dict[str, Any], seconds: float) -> bool:
        """Wait for the job, unless too many requests do."""
        with self.lock:
            if self.num_waiters >= self.max_waiters:
                return False
            self.num_waiters += 1
            self.lock.wait_for(lambda: job["state"] != "queued", seconds)
            self.num_waiters -= 1
        return True


def now() -> str:
    return datetime.now(UTC).isoformat()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: FakeService

    def log_message(self, *_: object) -> None:
        return

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.service.lock:
            number = len(self.service.jobs)
        if self.service.faults.refuses(number):
            self.service.accept(body)["state"] = "canceled"
            self._send(503, {"code": "busy"})
        elif self.service.faults.drops(number):
            self.service.accept(body)
            self.close_connection = True
        else:
            self._send_job(self.service.accept(body))

    def do_GET(self) -> None:
        if self.path.startswith("/v1/jobs/"):
            self._send_job(self.service.jobs[self.path.rpartition("/")[2]])
        elif self.path.startswith("/images/"):
            seed = self.path.split("/")[2]
            extra = b"!" if self.path.endswith("spoilt") else b""
            self._write(200, PICTURE + seed.encode() + extra)
        else:
            answers = {"/v1/models": {"models": [SERVED_MODEL]}, "/v1/tiers": {"tiers": [TIER]}}
            self._send(200, answers[self.path])

    def do_DELETE(self) -> None:
        self.service.canceled.append(self.path.rpartition("/")[2])
        self._send(200, {})

    def _send_job(self, job: dict[str, Any]) -> None:
        headers = {}
        prefer = self.headers.get("Prefer")
        if prefer and self.service.waited(job, float(prefer.removeprefix("wait="))):
            headers["Preference-Applied"] = prefer
        with self.service.lock:
            document = dict(job)
        self._send(202 if document["state"] == "queued" else 200, document, headers)

    def _send(self, status: int, document: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._write(status, json.dumps(document).encode(), headers)

    def _write(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


@contextmanager
def served(service: FakeService) -> Iterator[FakeService]:
    """Serve it on loopback; its `url` is set."""
    handler = type("Handler", (Handler,), {"service": service})
    with _Server(("127.0.0.1", 0), handler) as server:
        service.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()
