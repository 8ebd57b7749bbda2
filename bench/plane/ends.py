"""How soon the end of a job is told: seconds from the end of its row to the answer and to the webhook.

A job at a time runs on a system whose webhooks may reach loopback. It compares the clock of the database with
its own, since both are of this machine.
"""

import json
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import trustme

from bench.figures import Figure, figure_of
from bench.plane.load import Connection
from bench.plane.system import Plane, plane_system

JOB = {"prompt": "a red heart", "num_inference_steps": 1, "guidance_scale": 1.0, "width": 128, "height": 128}
SECONDS = 30.0
NUM_JOBS, NUM_SHORT, NUM_WARMING = 40, 3, 2
MAX_WEBHOOK_MS = 30.0


class Receiver:
    """An HTTPS server on loopback that notes when each job's webhook arrived."""

    def __init__(self, ca: trustme.CA) -> None:
        self._arrived: dict[str, float] = {}
        self._changed = threading.Condition()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("localhost").configure_cert(context)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                arrived_at = time.time()
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(204)
                self.end_headers()
                with outer._changed:
                    outer._arrived[body["data"]["id"]] = arrived_at
                    outer._changed.notify_all()

            def log_message(self, *_: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = f"https://localhost:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def arrived_at(self, job_id: str) -> float:
        """When the job's webhook arrived, in seconds since 1970; waits for it."""
        with self._changed:
            if not self._changed.wait_for(lambda: job_id in self._arrived, SECONDS):
                raise TimeoutError(f"no webhook for {job_id} within {SECONDS:g} s")
            return self._arrived[job_id]

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def receiving(folder: Path) -> Iterator[tuple[Receiver, dict[str, str]]]:
    """A receiver, and the settings with which a system trusts and reaches it."""
    ca = trustme.CA()
    ca_file = folder / "receiver-ca.pem"
    ca.cert_pem.write_to_path(str(ca_file))
    receiver = Receiver(ca)
    networks = "127.0.0.0/8,::1/128"
    # Postgres' URL says `sslmode=disable`, and the other embedded services speak no TLS.
    settings = {"CALOTYPE_CA_FILE": str(ca_file), "CALOTYPE_WEBHOOK_ALLOWED_NETWORKS": networks}
    try:
        yield receiver, settings
    finally:
        receiver.close()


@dataclass(frozen=True)
class Told:
    """Milliseconds from the ends of jobs, one a job: to the answer that waited, and to the webhook."""

    answers: list[float]
    webhooks: list[float]


def measure(*, is_short: bool) -> Iterator[Figure]:
    """Milliseconds from the end of a job's row to its webhook at the receiver, and to a waiting answer."""
    num_jobs = NUM_SHORT if is_short else NUM_JOBS
    with (
        tempfile.TemporaryDirectory() as name,
        receiving(Path(name)) as (receiver, settings),
        plane_system(Path(name) / "system", devices=["cpu:0"], overrides=settings) as plane,
    ):
        told = _told(plane, receiver, num_jobs)
    reason = f"from the row's end, by the database's clock; {num_jobs} jobs, one after another"
    yield figure_of("webhook_ms", told.webhooks, MAX_WEBHOOK_MS, 0.0, reason, is_at_most=True)
    yield figure_of("answer_ms", told.answers, None, 0.0, f"{reason}, each with `Prefer: wait`")


def _told(plane: Plane, receiver: Receiver, num_jobs: int) -> Told:
    told = Told([], [])
    client = Connection(plane.url, plane.api_key)
    for number in range(NUM_WARMING + num_jobs):
        body = json.dumps({**JOB, "seed": number, "webhook_url": receiver.url}).encode()
        job = client.submit(body, wait=int(SECONDS))
        answered_at = time.time()
        ended_at = datetime.fromisoformat(job["finished_at"]).timestamp()
        arrived_at = receiver.arrived_at(job["id"])
        if number >= NUM_WARMING:  # the first ones make connections
            told.answers.append((answered_at - ended_at) * 1000)
            told.webhooks.append((arrived_at - ended_at) * 1000)
    client.close()
    return told
