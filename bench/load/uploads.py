"""Arrivals as CSV uploads, `POST /v1/batches`: a row is a request, and each has an outcome of its own.

When a row ended is taken from the service's clock, counted from the answer to the upload; asking for each row
while the batch runs would be load of its own. It knows one arrival.
"""

import csv
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from bench.load.connection import LOST, Answer, Connection
from bench.load.jobs import Job, cancel, checked, is_open, ran_seconds, told, unanswered
from bench.load.outcomes import Outcome
from bench.load.send import Timeline
from bench.load.trace import Arrival, Fields

POLL_SECONDS = 1.0
PAGE_SIZE = 200
_BOUNDARY = "calotype-bench"


def upload(arrival: Arrival, connection: Connection, timeline: Timeline) -> list[Outcome]:
    """Upload the rows, wait until their batch has ended, fetch their images."""
    begun = [
        Outcome(request, arrival.form, arrival.due_seconds, timeline.now(), "lost", is_waited=False)
        for request in arrival.requests
    ]
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="bench.csv"\r\n\r\n'
    body = f"{head}{csv_of(arrival.requests)}\r\n--{_BOUNDARY}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    try:
        answer = connection.ask("POST", "/v1/batches", body, headers=headers)
    except LOST as error:
        return [unanswered(one, error) for one in begun]
    if answer.status not in (200, 201, 202) or "id" not in answer.document:
        return [replace(one, kind="refused", detail=answer.refusal) for one in begun]
    answered, batch_id = timeline.now(), str(answer.document["id"])
    if not _has_ended(batch_id, connection, timeline):
        cancel(connection, f"/v1/batches/{batch_id}")
    try:
        jobs = sorted(_jobs_of(batch_id, connection), key=lambda job: job["batch_line"])
    except LOST as error:
        return [unanswered(one, error) for one in begun]
    if len(jobs) != len(begun):
        return [replace(one, kind="wrong", detail=f"{len(jobs)} jobs of {len(begun)} rows") for one in begun]
    return [_ended(one, job, answered, connection, timeline) for one, job in zip(begun, jobs, strict=True)]


def _has_ended(batch_id: str, connection: Connection, timeline: Timeline) -> bool:
    """Whether the batch ended before the run did; a lost answer is asked for again."""
    while timeline.left() > 0:
        try:
            answer = connection.ask("GET", f"/v1/batches/{batch_id}")
        except LOST:
            answer = Answer(0, {}, b"")
        if answer.document.get("state", "running") != "running":
            return True
        time.sleep(min(POLL_SECONDS, timeline.left()))
    return False


def _jobs_of(batch_id: str, connection: Connection) -> Iterator[Job]:
    cursor: str | None = ""
    while cursor is not None:
        page = f"&cursor={cursor}" if cursor else ""
        answer = connection.ask("GET", f"/v1/jobs?batch_id={batch_id}&limit={PAGE_SIZE}{page}").document
        yield from answer.get("jobs", [])
        cursor = answer.get("next_cursor")


def _ended(begun: Outcome, job: Job, answered: float, connection: Connection, timeline: Timeline) -> Outcome:
    if is_open(job) or job["state"] == "canceled":
        return told(replace(begun, kind="unfinished"), job)
    return checked(replace(begun, ended_seconds=answered + ran_seconds(job)), job, connection, timeline)


def csv_of(requests: Sequence[Fields]) -> str:
    """The requests as a CSV; a field that a request does not have is an empty cell."""
    names = list(dict.fromkeys(name for request in requests for name in request))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[_cell(request.get(name)) for name in names] for request in requests])
    return text.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else value
