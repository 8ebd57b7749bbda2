"""Arrivals as CSV uploads, `POST /v1/batches`: a row is a request, and each has an outcome of its own.

When a row ended is taken from the service's clock, counted from the answer to the upload; asking for each row
while the batch runs would be load of its own. Images are fetched on several threads once the batch or the run
has ended. It knows one arrival.
"""

import csv
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from bench.load.connection import LOST, Answer, Connection
from bench.load.jobs import Job, cancel, checked, is_open, ran_seconds, told, unanswered
from bench.load.outcomes import Outcome
from bench.load.send import Timeline
from bench.load.trace import Arrival, Fields

POLL_SECONDS = 1.0
PAGE_SIZE = 200
NUM_FETCHERS = 8
FETCH_SECONDS = 20.0
"""After the end of a run, in which images of rows that ended in it may still be fetched."""
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
        return [unanswered(one, error, timeline.now()) for one in begun]
    if answer.status not in (200, 201, 202) or "id" not in answer.document:
        now = timeline.now()
        return [replace(one, kind="refused", ended_seconds=now, detail=answer.refusal) for one in begun]
    answered, batch_id = timeline.now(), str(answer.document["id"])
    if not _has_ended(batch_id, connection, timeline):
        cancel(connection, f"/v1/batches/{batch_id}")
    jobs, refusal = _jobs_of(batch_id, connection, timeline)
    if refusal:
        now = timeline.now()
        return [replace(one, ended_seconds=now, detail=f"its jobs: {refusal}") for one in begun]
    if len(jobs) != len(begun):
        return [replace(one, kind="wrong", detail=f"{len(jobs)} jobs of {len(begun)} rows") for one in begun]
    return _checked(list(zip(begun, jobs, strict=True)), answered, connection, timeline)


def _has_ended(batch_id: str, connection: Connection, timeline: Timeline) -> bool:
    """Whether the batch ended before the run did; a lost answer is asked for again."""
    while timeline.left() > 0:
        try:
            answer = connection.ask("GET", f"/v1/batches/{batch_id}")
        except LOST:
            answer = Answer(0, {}, b"")
        if answer.document.get("state", "running") != "running":
            return True
        timeline.sleep(min(POLL_SECONDS, timeline.left()))
    return False


def _jobs_of(batch_id: str, connection: Connection, timeline: Timeline) -> tuple[list[Job], str]:
    """The jobs in the order of their rows; none, and why, if a page of them could not be read."""
    jobs: list[Job] = []
    cursor: str | None = ""
    while cursor is not None:
        page = f"&cursor={cursor}" if cursor else ""
        path = f"/v1/jobs?batch_id={batch_id}&limit={PAGE_SIZE}{page}"
        document, refusal = _read(path, connection, timeline)
        if refusal:
            return [], refusal
        jobs += document.get("jobs", [])
        cursor = document.get("next_cursor")
    return sorted(jobs, key=lambda job: int(job["batch_line"])), ""


def _read(path: str, connection: Connection, timeline: Timeline) -> tuple[dict[str, Any], str]:
    """The answer's document, or why there is none; asked again while the service has errors."""
    while True:
        try:
            answer = connection.ask("GET", path)
        except LOST as error:
            refusal = type(error).__name__
        else:
            if answer.status == 200:
                return answer.document, ""
            refusal = answer.refusal
            if answer.status < 500:
                return {}, refusal
        if not (left := _left_to_fetch(timeline)):
            return {}, refusal
        timeline.sleep(min(POLL_SECONDS, left))


def _left_to_fetch(timeline: Timeline) -> float:
    return max(0.0, timeline.end_seconds + FETCH_SECONDS - timeline.now())


def _checked(
    rows: Sequence[tuple[Outcome, Job]], answered: float, connection: Connection, timeline: Timeline
) -> list[Outcome]:
    """The outcomes of rows; each thread takes every n-th of them, with a connection of its own."""
    num_threads = min(NUM_FETCHERS, len(rows))

    def of_part(number: int) -> list[Outcome]:
        own = connection.another()
        try:
            return [_ended(one, job, answered, own, timeline) for one, job in rows[number::num_threads]]
        finally:
            own.close()

    with ThreadPoolExecutor(num_threads) as pool:
        parts = list(pool.map(of_part, range(num_threads)))
    return [parts[index % num_threads][index // num_threads] for index in range(len(rows))]


def _ended(begun: Outcome, job: Job, answered: float, connection: Connection, timeline: Timeline) -> Outcome:
    if is_open(job) or job["state"] == "canceled":
        return told(replace(begun, kind="unfinished", ended_seconds=timeline.now()), job)
    ended = replace(begun, ended_seconds=answered + ran_seconds(job))
    if not _left_to_fetch(timeline):
        return told(replace(ended, kind="unfinished", detail="its image was not fetched in time"), job)
    return checked(ended, job, connection, timeline)


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
