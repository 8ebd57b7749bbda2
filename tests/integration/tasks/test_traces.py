"""A request is one trace, from the client's own span to the upload, as a real collector receives it.

The packages of OpenTelemetry are an extra: without them, these tests run in a process that finds them beside
the rest, where `make install` puts them.
"""

import importlib.util
import io
import os
import secrets
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask

from engine.errors import EngineStopped, NumericError
from engine.request import GeneratedImage, Timings
from settings import ROOT, Settings
from storage import deliveries, jobs
from storage.blobs import Blobs
from storage.database import Database
from storage.deliveries import AttemptRecord
from storage.job_views import list_jobs
from storage.jobs import WorkerName
from storage.roles import DatabaseRole
from tasks.generate import Generate, GeneratePlan
from tasks.in_flight import InFlightJobs
from tasks.isolation import Isolations
from tasks.stages import STAGES
from tasks.traces import tracer
from tasks.traces.job_spans import JobSpans
from tasks.traces.tracer import Tracer
from tasks.webhooks.worker import DeliverySpans
from tests.integration.tasks.conftest import FakeEngine, FakeHandle
from web.app import create_app
from web.wiring import EXTENSION

try:
    HAS_OPENTELEMETRY = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
except ModuleNotFoundError:
    HAS_OPENTELEMETRY = False
needs_opentelemetry = pytest.mark.skipif(not HAS_OPENTELEMETRY, reason="OpenTelemetry is not installed")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROMPT, WEBHOOK = "a secret red heart", "https://hooks.example.com/secret-path"


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as the collector got it, with ids in hexadecimal."""

    name: str
    process: str
    trace_id: str
    span_id: str
    parent_id: str
    begun_at: int
    ended_at: int
    is_error: bool
    attributes: dict[str, str]


class Collector:
    """An OTLP receiver on loopback, which keeps what it gets."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/traces"
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def spans(self) -> list[ReceivedSpan]:
        """What came so far, first begun first."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        found = []
        for body in self.bodies:
            for of_process in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = {one.key: one.value.string_value for one in of_process.resource.attributes}
                found += [
                    ReceivedSpan(
                        span.name,
                        about["service.name"],
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        span.status.code == span.status.STATUS_CODE_ERROR,
                        {
                            one.key: str(getattr(one.value, one.value.WhichOneof("value")))
                            for one in span.attributes
                        },
                    )
                    for scope in of_process.scope_spans
                    for span in scope.spans
                ]
        return sorted(found, key=lambda span: (span.begun_at, -span.ended_at))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


class Fleet:
    """An API and a worker with traces, over real rows and blobs, with a fake engine."""

    def __init__(self, settings: Settings, endpoint: str, key: str, database: Database, blobs: Blobs) -> None:
        self.app: Flask = create_app(settings.model_copy(update={"traces_endpoint": endpoint}))
        self.key, self.engine = key, FakeEngine()
        self.engine.behave = succeed
        self.worker_tracer = Tracer(endpoint, "worker", "cpu:0")
        self.generate = Generate(
            db=database,
            blobs=blobs,
            submit=self.engine.submit,
            in_flight=InFlightJobs(),
            isolations=Isolations(database),
            worker=WorkerName(secrets.token_hex(4), "cpu:0@test"),
            tiers=["sd", "hd"],
            plan=GeneratePlan(lease_seconds=30, upload_seconds=2, max_attempts=2),
            observers=[JobSpans(self.worker_tracer)],
        )

    def post(self, path: str, traceparent: str | None = f"00-{TRACE}-{PARENT}-01", **body: Any) -> str:
        """The id of what the request made."""
        headers = {"Authorization": f"Bearer {self.key}"}
        if traceparent is not None:
            headers["traceparent"] = traceparent
        response = self.app.test_client().post(path, headers=headers, buffered=True, **body)
        assert response.status_code == 202, response.get_data(as_text=True)
        return str(response.get_json()["id"])

    def submit(self, traceparent: str | None = f"00-{TRACE}-{PARENT}-01", **fields: Any) -> str:
        return self.post("/v1/jobs", traceparent, json={"prompt": PROMPT, **fields})

    def stop(self) -> None:
        """Send all spans."""
        self.worker_tracer.stop()
        self.app.extensions[EXTENSION].tracer.stop()


def succeed(handle: FakeHandle) -> None:
    timings = Timings(0.004, 0.001, 0.02, 0.003, 1, device_seconds=0.5)
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    handle.future.set_result(GeneratedImage(pixels, (), timings, 2.0, {}, 4))


@pytest.fixture
def fleet(
    settings: Settings,
    collector: Collector,
    api_key: str,
    databases: dict[DatabaseRole, Database],
    blobs: Blobs,
) -> Iterator[Fleet]:
    running = Fleet(settings, collector.url, api_key, databases["worker"], blobs)
    yield running
    running.stop()


def named(spans: Sequence[ReceivedSpan], name: str) -> ReceivedSpan:
    (found,) = [span for span in spans if span.name == name]
    return found


@needs_opentelemetry
def test_a_job_is_one_trace_from_the_clients_request_to_its_upload(
    fleet: Fleet, collector: Collector
) -> None:
    job_id = fleet.submit(num_images=2, webhook_url=WEBHOOK)
    fleet.generate(job_id)
    fleet.stop()
    spans = collector.spans
    assert [span.name for span in spans] == ["POST /v1/jobs", "job", "queued", *STAGES]
    assert {span.trace_id for span in spans} == {TRACE}, "the client's"
    request, job, *stages = spans
    assert (request.process, request.parent_id) == ("calotype-api", PARENT)
    assert request.attributes["http.response.status_code"] == "202"
    assert (job.process, job.parent_id) == ("calotype-worker", request.span_id)
    assert (job.attributes["calotype.job.id"], job.attributes["calotype.job.state"]) == (job_id, "succeeded")
    assert {stage.parent_id for stage in stages} == {job.span_id}
    for before, after in pairwise(stages):
        assert before.ended_at == pytest.approx(after.begun_at, abs=2000)
    assert request.begun_at <= job.begun_at == stages[0].begun_at
    assert stages[-1].ended_at <= job.ended_at
    seconds = {stage.name: (stage.ended_at - stage.begun_at) / 1e9 for stage in stages}
    assert seconds["joining"] == pytest.approx(0.003, abs=1e-4), "without the encoding, which is in it"
    assert seconds["denoising"] == pytest.approx(0.02, abs=1e-4)
    assert not any(span.is_error for span in spans)


@needs_opentelemetry
def test_spans_hold_no_prompt_no_key_and_no_link(fleet: Fleet, collector: Collector, api_key: str) -> None:
    fleet.generate(fleet.submit(webhook_url=WEBHOOK))
    fleet.stop()
    sent = b"".join(collector.bodies)
    assert b"POST /v1/jobs" in sent
    for secret in (PROMPT, WEBHOOK, "secret-path", api_key):
        assert secret.encode() not in sent


@needs_opentelemetry
@pytest.mark.parametrize(
    "traceparent", [None, "", "00-x-y-01", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01"]
)
def test_a_traceparent_that_is_not_valid_begins_a_new_trace(
    fleet: Fleet, collector: Collector, traceparent: str | None
) -> None:
    fleet.generate(fleet.submit(traceparent))
    fleet.stop()
    (trace,) = {span.trace_id for span in collector.spans}
    assert trace not in (TRACE, "0" * 32)
    assert named(collector.spans, "POST /v1/jobs").parent_id == ""


@needs_opentelemetry
def test_what_the_client_does_not_sample_is_not_sent(fleet: Fleet, collector: Collector) -> None:
    fleet.generate(fleet.submit(f"00-{TRACE}-{PARENT}-00"))
    fleet.stop()
    assert collector.spans == []


@needs_opentelemetry
def test_a_failed_job_has_its_code_and_an_error(fleet: Fleet, collector: Collector) -> None:
    fleet.engine.behave = lambda handle: handle.future.set_exception(NumericError("nan"))
    fleet.generate(fleet.submit())
    fleet.stop()
    job = named(collector.spans, "job")
    assert job.is_error
    assert job.attributes["error.type"] == NumericError.code
    assert [span.name for span in collector.spans if span.parent_id == job.span_id] == ["queued"]


@needs_opentelemetry
def test_each_attempt_has_a_span_and_only_the_first_was_queued(fleet: Fleet, collector: Collector) -> None:
    fleet.engine.behave = lambda handle: handle.future.set_exception(EngineStopped())
    job_id = fleet.submit()
    fleet.generate(job_id)
    fleet.engine.behave = succeed
    fleet.generate(job_id)
    fleet.stop()
    first, second = (span for span in collector.spans if span.name == "job")
    assert {first.trace_id, second.trace_id} == {TRACE}
    for span, number, state in ((first, "1", "queued"), (second, "2", "succeeded")):
        assert span.attributes["calotype.job.id"] == job_id
        assert (span.attributes["calotype.job.attempt"], span.attributes["calotype.job.state"]) == (
            number,
            state,
        )
    assert (first.is_error, first.attributes["error.type"]) == (True, EngineStopped.code)
    assert not second.is_error
    assert [span.name for span in collector.spans if span.parent_id == first.span_id] == ["queued"]
    assert [span.name for span in collector.spans if span.parent_id == second.span_id] == [*STAGES]
    assert first.begun_at <= first.ended_at <= second.begun_at, "from its own claim"


@needs_opentelemetry
def test_a_canceled_job_is_no_error(
    fleet: Fleet, collector: Collector, database: Database, account: str
) -> None:
    job_id = fleet.submit()

    def cancel(handle: FakeHandle) -> None:
        jobs.cancel(database, account, job_id)
        handle.cancel()

    fleet.engine.behave = cancel
    fleet.generate(job_id)
    fleet.stop()
    job = named(collector.spans, "job")
    assert job.attributes["calotype.job.state"] == "canceled"
    assert not job.is_error
    assert "error.type" not in job.attributes
    assert [span.name for span in collector.spans if span.parent_id == job.span_id] == ["queued"]


@needs_opentelemetry
def test_the_rows_of_a_csv_belong_to_the_request_that_uploaded_them(
    fleet: Fleet, collector: Collector, database: Database, account: str
) -> None:
    rows = f"prompt\n{PROMPT}\n{PROMPT} again\n"
    batch = fleet.post("/v1/batches", data={"file": (io.BytesIO(rows.encode()), "prompts.csv")})
    for row in list_jobs(database, account, batch_id=batch):
        fleet.generate(row.id)
    fleet.stop()
    request = named(collector.spans, "POST /v1/batches")
    of_jobs = [span for span in collector.spans if span.name == "job"]
    assert [(span.parent_id, span.trace_id) for span in of_jobs] == [(request.span_id, TRACE)] * 2
    assert {span.attributes["calotype.batch.id"] for span in of_jobs} == {batch}


@needs_opentelemetry
@pytest.mark.usefixtures("outbox")
def test_the_attempts_of_a_webhook_belong_to_the_trace_of_its_job(
    fleet: Fleet, collector: Collector, databases: dict[DatabaseRole, Database]
) -> None:
    fleet.generate(fleet.submit(webhook_url=WEBHOOK))
    claimed = deliveries.claim(databases["sender"], max_per_account=1, lease_seconds=30)
    assert claimed is not None
    webhook_tracer = Tracer(collector.url, "webhooks")
    DeliverySpans(webhook_tracer).attempted(claimed, AttemptRecord(20, 500, "http_status"), "pending")
    webhook_tracer.stop()
    fleet.stop()
    webhook = named(collector.spans, "webhook")
    assert webhook.parent_id == named(collector.spans, "POST /v1/jobs").span_id
    assert (webhook.is_error, webhook.attributes["error.type"]) == (True, "http_status")
    assert webhook.ended_at - webhook.begun_at == pytest.approx(20e6, abs=1e6)
    assert b"hooks.example.com" not in b"".join(collector.bodies)


class SilentCollector:
    """A server on loopback that accepts connections and never answers."""

    def __init__(self) -> None:
        self.has_connection = threading.Event()
        self.num_closed = 0
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                outer.has_connection.set()
                while self.request.recv(65536):
                    pass
                outer.num_closed += 1

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def silent_collector() -> Iterator[SilentCollector]:
    running = SilentCollector()
    yield running
    running.close()


@needs_opentelemetry
def test_a_collector_that_never_answers_delays_and_fails_nothing(
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    silent_collector: SilentCollector,
    api_key: str,
    databases: dict[DatabaseRole, Database],
    blobs: Blobs,
) -> None:
    """Whoever waited for it would do so until its connection is closed, when the time for sending is over."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")  # milliseconds; 5000 unless it is set
    monkeypatch.setattr(tracer, "EXPORT_SECONDS", 30.0)
    fleet = Fleet(settings, silent_collector.url, api_key, databases["worker"], blobs)
    fleet.generate(fleet.submit())
    assert silent_collector.has_connection.wait(20)
    job_id = fleet.submit()
    fleet.generate(job_id)
    headers = {"Authorization": f"Bearer {api_key}"}
    shown = fleet.app.test_client().get(f"/v1/jobs/{job_id}", headers=headers).get_json()
    assert shown["state"] == "succeeded"
    fleet.stop()
    assert silent_collector.num_closed == 0, "a process that ends waits no longer than `STOP_SECONDS`"


def test_a_process_without_an_endpoint_does_not_import_the_exporter() -> None:
    """redis-py imports other parts of OpenTelemetry wherever they are installed."""
    check = (
        "import sys, web.app, tasks.webhooks.worker, tasks.traces.job_spans\n"
        "from tasks.traces.tracer import Tracer\n"
        "sys.exit(Tracer.at('', 'api') is not None or 'opentelemetry.exporter' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr


@pytest.mark.skipif(HAS_OPENTELEMETRY, reason="they run as they are")
def test_traces_are_tried_where_their_packages_lie_beside() -> None:
    """`make install` puts them into a folder of their own, as most installations have none of them."""
    folder = Path(sys.prefix) / "traces"
    if not (folder / "opentelemetry").is_dir():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"there is no opentelemetry in {folder}")
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout
