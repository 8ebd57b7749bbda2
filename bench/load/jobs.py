"""Arrivals as jobs of calotype's API, `POST /v1/jobs`: submitted, waited for, and their images checked.

A service lets a limited number of requests wait for jobs. Beyond it they stand in a line
(`bench.load.waits`), and a job that ends meanwhile has ended when the service's own clock says.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from bench.load.connection import LOST, Answer, Connection, ran_out
from bench.load.outcomes import Kind, Outcome
from bench.load.send import Timeline
from bench.load.trace import Arrival, images_of
from bench.load.waits import Line

WAIT_SECONDS = 10.0
"""Of one request; short, so that an interrupted run ends soon."""
AGAIN_SECONDS = 0.5
"""The pause after a question about a job that was not answered."""
OPEN_STATES = ("queued", "running")

Job = dict[str, Any]


class JobRoute:
    """Submits single jobs. One for all threads of a run, which share its line of waits."""

    def __init__(self) -> None:
        self._line = Line()

    def __call__(self, arrival: Arrival, connection: Connection, timeline: Timeline) -> list[Outcome]:
        """Submit the job, wait until it has ended, fetch its images."""
        (request,) = arrival.requests
        begun = Outcome(request, arrival.form, arrival.due_seconds, timeline.now(), "lost")
        try:
            answer = self._submit(json.dumps(request).encode(), connection, timeline)
        except LOST as error:
            return [unanswered(begun, error, timeline.now())]
        if answer.status not in (200, 202) or "id" not in answer.document:
            return [replace(begun, kind="refused", ended_seconds=timeline.now(), detail=answer.refusal)]
        job, is_waited = answer.document, was_waited(answer)
        ended = answered = timeline.now()
        if is_open(job):
            job, is_followed = self._follow(job, arrival.due_seconds, connection, timeline)
            is_waited, ended = is_waited and is_followed, timeline.now()
        if is_open(job):
            cancel(connection, f"/v1/jobs/{job['id']}")
            return [told(replace(begun, kind="unfinished", ended_seconds=timeline.now()), job)]
        if not is_waited:
            # An answer that was not held back came right after the job was created, another that much later.
            ended = min(ended, answered - waited_seconds(answer) + ran_seconds(job))
        return [checked(replace(begun, ended_seconds=ended, is_waited=is_waited), job, connection, timeline)]

    def _submit(self, body: bytes, connection: Connection, timeline: Timeline) -> Answer:
        headers = {"Content-Type": "application/json"}
        if self._line.is_closed:
            return connection.ask("POST", "/v1/jobs", body, headers=headers)
        wait = min(WAIT_SECONDS, timeline.left())
        answer = connection.ask(
            "POST", "/v1/jobs", body, headers={**headers, **_prefer(wait)}, wait_seconds=wait
        )
        self._note(answer)
        return answer

    def _follow(
        self, job: Job, due_seconds: float, connection: Connection, timeline: Timeline
    ) -> tuple[Job, bool]:
        """The job at its end or at that of the run, and whether the service let us wait all the time."""
        path, is_waited = f"/v1/jobs/{job['id']}", True
        while is_open(job):
            is_waited = is_waited and not self._line.is_closed
            if not self._line.stand(due_seconds, timeline.left):
                break
            answer = _asked(connection, path, min(WAIT_SECONDS, timeline.left()))
            if answer is not None and answer.status == 200:
                self._note(answer)
                job, is_waited = answer.document, is_waited and was_waited(answer)
            else:
                timeline.sleep(min(AGAIN_SECONDS, timeline.left()))
        if is_open(job):
            answer = _asked(connection, path, 0)
            job = answer.document if answer is not None and answer.status == 200 else job
        return job, is_waited

    def _note(self, answer: Answer) -> None:
        """Tell the line whether the service let this request wait."""
        if was_waited(answer):
            self._line.waited()
        elif is_open(answer.document):
            self._line.refused()


def _asked(connection: Connection, target: str, wait_seconds: float) -> Answer | None:
    """The answer to a GET, or None if it is lost: the job goes on."""
    headers = _prefer(wait_seconds) if wait_seconds else {}
    try:
        return connection.ask("GET", target, headers=headers, wait_seconds=wait_seconds)
    except LOST:
        return None


def _prefer(wait_seconds: float) -> dict[str, str]:
    """The header that asks for an answer when the job ends (RFC 7240, section 4.3)."""
    return {"Prefer": f"wait={wait_seconds:.2f}"}


def is_open(job: Job) -> bool:
    """Whether the job has not ended."""
    return job.get("state") in OPEN_STATES


def was_waited(answer: Answer) -> bool:
    """Whether the service let the request wait for the job (RFC 7240, section 3)."""
    return waited_seconds(answer) > 0


def waited_seconds(answer: Answer) -> float:
    """How long the service held back the answer to a job that is still open; 0 if it did not."""
    applied = answer.headers.get("preference-applied", "").partition("wait=")[2].partition(",")[0]
    try:
        return float(applied or 0)
    except ValueError:
        return 0.0


def ran_seconds(job: Job) -> float:
    """From the job's creation to its end, by the service's clock."""
    created, finished = (datetime.fromisoformat(job[name]) for name in ("created_at", "finished_at"))
    return (finished - created).total_seconds()


def cancel(connection: Connection, path: str) -> None:
    """Cancel a job or a batch, so that it is no load on the next run; it may have ended."""
    try:
        connection.ask("DELETE", path)
    except LOST:
        return  # its service does not answer, so there is no next run either


def unanswered(outcome: Outcome, error: BaseException, now: float) -> Outcome:
    """The outcome of a request to which no answer came, as the client knows since `now`."""
    kind: Kind = "unsent" if ran_out(error) else "lost"
    return replace(outcome, kind=kind, ended_seconds=now, detail=type(error).__name__)


def told(outcome: Outcome, job: Job) -> Outcome:
    """The outcome with what the job says of itself."""
    cost: Mapping[str, Any] | None = job.get("cost")
    return replace(
        outcome,
        job_id=job["id"],
        tier=job.get("tier") or "",
        worker=job.get("worker") or "",
        timings=job.get("timings") or {},
        cost=(float(cost["amount"]), str(cost["currency"])) if cost else None,
    )


def checked(outcome: Outcome, job: Job, connection: Connection, timeline: Timeline) -> Outcome:
    """The outcome of a job that has ended, once each of its images was fetched and compared with its hash."""
    outcome = told(outcome, job)
    if job["state"] != "succeeded":
        return replace(outcome, kind="failed", detail=(job.get("error") or {}).get("code") or job["state"])
    begun, num_bytes, hashes = timeline.now(), 0, []
    request, images = outcome.request, job.get("images") or []
    if len(images) != images_of(request):
        return replace(outcome, kind="wrong", detail=f"{len(images)} images instead of {images_of(request)}")
    for image in images:
        for side in ("width", "height"):
            if request.get(side) not in (None, image[side]):
                return replace(outcome, kind="wrong", detail=f"{side} {image[side]} of {request[side]}")
        try:
            answer = connection.fetch(image["url"])
        except LOST as error:
            return replace(outcome, kind="lost", detail=f"image: {type(error).__name__}")
        if answer.status != 200:
            kind: Kind = "lost" if answer.status >= 500 else "wrong"
            return replace(outcome, kind=kind, detail=f"image: http_{answer.status}")
        if hashlib.sha256(answer.body).hexdigest() != image["sha256"]:
            return replace(outcome, kind="wrong", detail="image: another hash")
        num_bytes += len(answer.body)
        hashes.append(image["sha256"])
    return replace(
        outcome,
        kind="succeeded",
        download_seconds=timeline.now() - begun,
        num_images=len(images),
        num_bytes=num_bytes,
        sha256=tuple(hashes),
    )
