"""Sending and uploading without a network: what a service leaves unanswered becomes a miss by its kind."""

import csv
import hashlib
import io
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http.client import RemoteDisconnected
from typing import Any

import pytest

from bench.load.connection import Answer, Connection, Place
from bench.load.outcomes import Outcome
from bench.load.send import Timeline, send
from bench.load.trace import Arrival, Trace
from bench.load.uploads import FETCH_SECONDS, PAGE_SIZE, upload

PICTURE = b"the bytes of an image"
BEGUN, ENDED = "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:02+00:00"
NOWHERE = Place("http://127.0.0.1:9")


def request(number: int) -> dict[str, Any]:
    return {"prompt": "a red star", "width": 64, "height": 64, "num_images": 1, "seed": number}


@dataclass
class Batch:
    """A service that has drawn a batch; a test changes its answers by their number, counted from 0."""

    num_rows: int
    now: float = 0.0
    answer_seconds: float = 0.0
    state: Callable[[int], str] = lambda _: "succeeded"
    list_status: Callable[[int], int] = lambda _: 200
    image_status: Callable[[str], int] = lambda _: 200
    uploads: list[bytes] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    connections: set[int] = field(default_factory=set)

    def jobs(self) -> list[dict[str, Any]]:
        image = {"width": 64, "height": 64, "sha256": hashlib.sha256(PICTURE).hexdigest()}
        return [
            {
                "id": f"job_{number}",
                "batch_line": number + 2,
                "state": self.state(number),
                "created_at": BEGUN,
                "finished_at": ENDED,
                "images": [{**image, "url": f"/images/{number}"}],
            }
            for number in reversed(range(self.num_rows))  # the API lists the newest first
        ]

    def answer(self, method: str, path: str) -> tuple[int, dict[str, Any]]:
        self.asked.append(f"{method} {path}")
        self.now += self.answer_seconds
        if method == "POST":
            return 202, {"id": "batch_1"}
        if not path.startswith("/v1/jobs?"):
            return 200, {"state": "succeeded"}
        status = self.list_status(sum("/v1/jobs?" in one for one in self.asked) - 1)
        if status != 200:
            return status, {"code": "unavailable"}
        start = int(path.partition("cursor=")[2] or 0)
        end = start + PAGE_SIZE
        cursor = str(end) if end < self.num_rows else None
        return 200, {"jobs": self.jobs()[start:end], "next_cursor": cursor}

    def timeline(self, end_seconds: float = 60.0) -> Timeline:
        return Timeline(end_seconds, clock=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeConnection(Connection):
    """Asks a `Batch`."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(NOWHERE, None)
        self._batch = batch

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        **_: Any,
    ) -> Answer:
        if body is not None and headers is not None:
            self._batch.uploads.append(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
        status, document = self._batch.answer(method, path)
        return Answer(status, {}, json.dumps(document).encode())

    def fetch(self, url: str) -> Answer:
        self._batch.fetched.append(url)
        self._batch.connections.add(id(self))
        status = self._batch.image_status(url)
        if status == 0:
            raise RemoteDisconnected("no answer")
        return Answer(status, {}, PICTURE)

    def another(self) -> Connection:
        return FakeConnection(self._batch)


def uploaded(batch: Batch, *, end_seconds: float = 60.0) -> list[Outcome]:
    arrival = Arrival(0.0, tuple(request(number) for number in range(batch.num_rows)), "csv")
    return upload(arrival, FakeConnection(batch), batch.timeline(end_seconds))


def test_a_service_that_hangs_loses_its_requests_and_not_the_measurement() -> None:
    released = threading.Event()

    def route(arrival: Arrival, connection: Connection, timeline: Timeline) -> list[Outcome]:  # noqa: ARG001
        if arrival.requests[0]["seed"] == 1:
            released.wait()
        now = timeline.now()
        return [Outcome(arrival.requests[0], "single", arrival.due_seconds, now, "succeeded", now)]

    trace = Trace(tuple(Arrival(0.0, (request(number),)) for number in range(3)), seconds=0.01)
    try:
        found = send(
            trace,
            {"single": route},
            lambda: Connection(NOWHERE, None),
            drain_seconds=0.0,
            grace_seconds=0.3,
        )
    finally:
        released.set()
    assert [one.kind for one in found] == ["succeeded", "lost", "succeeded"]
    assert found[1].detail == "no answer by the end"
    assert found[1].sent_seconds > 0
    assert found[1].latency_seconds is None


def test_an_error_of_the_load_generator_ends_the_run() -> None:
    def route(arrival: Arrival, connection: Connection, timeline: Timeline) -> list[Outcome]:
        raise ZeroDivisionError(arrival, connection, timeline)

    trace = Trace((Arrival(0.0, (request(0),)),), seconds=0.01)
    with pytest.raises(ZeroDivisionError):
        send(trace, {"single": route}, lambda: Connection(NOWHERE, None), drain_seconds=5.0)


def test_an_upload_is_a_form_with_one_csv_of_all_rows() -> None:
    batch, prompt = Batch(2), 'a "red" star, in\nümlauts'
    rows = ({**request(1), "prompt": prompt, "strict": True}, {**request(2), "negative_prompt": "blue"})
    upload(Arrival(0.0, rows, "csv"), FakeConnection(batch), batch.timeline())
    (form,) = batch.uploads
    (part,) = BytesParser(policy=HTTP).parsebytes(form).iter_parts()
    assert part.get_param("name", header="content-disposition") == "file"
    text = part.get_payload(decode=True)
    assert isinstance(text, bytes)
    first, second = csv.DictReader(io.StringIO(text.decode(), newline=""))
    assert (first["prompt"], first["strict"], first["seed"], first["negative_prompt"]) == (
        prompt,
        "true",
        "1",
        "",
    )
    assert (second["prompt"], second["strict"], second["negative_prompt"]) == ("a red star", "", "blue")


def test_rows_of_an_upload_are_checked_in_their_order_though_pages_list_the_newest_first() -> None:
    batch = Batch(PAGE_SIZE + 11)
    found = uploaded(batch)
    assert [one.kind for one in found] == ["succeeded"] * batch.num_rows
    assert [one.job_id for one in found] == [f"job_{number}" for number in range(batch.num_rows)]
    assert [one.request["seed"] for one in found] == list(range(batch.num_rows))
    assert [one for one in batch.asked if "/v1/jobs?" in one] == [
        f"GET /v1/jobs?batch_id=batch_1&limit={PAGE_SIZE}",
        f"GET /v1/jobs?batch_id=batch_1&limit={PAGE_SIZE}&cursor={PAGE_SIZE}",
    ]
    assert {one.ended_seconds for one in found} == {2.0}, "by the service's clock"
    assert len(set(batch.fetched)) == batch.num_rows
    assert len(batch.connections) > 1, "images are fetched on several threads, each with a connection"


@pytest.mark.parametrize(
    ("batch", "kind", "detail"),
    [
        (Batch(1, image_status=lambda _: 503), "lost", "image: http_503"),
        (Batch(1, image_status=lambda _: 404), "wrong", "image: http_404"),
        (Batch(1, image_status=lambda _: 0), "lost", "image: RemoteDisconnected"),
        (Batch(1, state=lambda _: "failed"), "failed", "failed"),
        (Batch(1, state=lambda _: "running"), "unfinished", ""),
        (Batch(1, state=lambda _: "canceled"), "unfinished", ""),
        (Batch(1, list_status=lambda _: 404), "lost", "its jobs: unavailable"),
    ],
)
def test_a_row_that_goes_wrong_is_a_miss_by_its_kind(batch: Batch, kind: str, detail: str) -> None:
    (found,) = uploaded(batch)
    assert (found.kind, found.detail) == (kind, detail)
    assert found.ended_seconds is not None


def test_a_list_of_jobs_that_a_service_cannot_give_is_asked_for_again_and_then_lost() -> None:
    at_first = Batch(1, list_status=lambda number: 503 if number < 3 else 200)
    assert [one.kind for one in uploaded(at_first)] == ["succeeded"]
    never = Batch(2, list_status=lambda _: 503, answer_seconds=FETCH_SECONDS)
    found = uploaded(never, end_seconds=3 * FETCH_SECONDS)
    assert [(one.kind, one.detail) for one in found] == [("lost", "its jobs: unavailable")] * 2, "not wrong"


def test_images_that_are_not_fetched_soon_after_the_run_are_unfinished() -> None:
    slow = Batch(40, answer_seconds=FETCH_SECONDS)
    found = uploaded(slow, end_seconds=FETCH_SECONDS)
    assert slow.fetched == []
    assert {(one.kind, one.detail) for one in found} == {("unfinished", "its image was not fetched in time")}
