"""What the client does to reach a goal, as generators of steps that perform no I/O themselves.

Owns retries, polling, paging and the check of a download, once for `Client` and `AsyncClient`. A generator
yields a `Send`, `Fetch`, `Put` or `Sleep`, is sent the answer or thrown the failure, yields `Found` for each
result of a sequence, and returns the last one.
"""

import hashlib
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2

from . import calls
from .answers import failure_of, failure_of_connection, unexpected
from .calls import Call
from .errors import (
    ApiError,
    CalotypeError,
    DownloadError,
    JobNotSucceededError,
    UploadError,
    WaitTimeoutError,
)
from .files import media_type_of
from .resources import Batch, File, Image, Job, JobPage

PATIENCE_SECONDS = 60.0
"""How long a watch goes on while the service does not answer."""
MAX_RETRY_AFTER_SECONDS = 60.0
"""A server that asks for more is not waited for: the error says how long it asks."""
LARGE_BYTES = 4_000_000
"""From here on a file goes straight to the store: a slow line then holds nothing of the API."""
ALREADY_THERE = 412
"""What a store answers to a link under which the same bytes were put before."""
FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS = 0.5, 8.0
FOLLOW_SECONDS, JOB_POLL_SECONDS, BATCH_POLL_SECONDS = 0.25, 5.0, 1.0

_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
"""Failures before anything of the request left this machine."""


T = TypeVar("T")
E = TypeVar("E", Job, Batch)


@dataclass(frozen=True)
class Send:
    """Send this request with the key; the answer is its response."""

    call: Call[Any]


@dataclass(frozen=True)
class Fetch:
    """GET this presigned link without the key, which must not travel with it; the answer is its response."""

    url: str


@dataclass(frozen=True)
class Put:
    """PUT these bytes under a presigned link without the key; the answer is its response."""

    url: str
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True)
class Sleep:
    """Wait."""

    seconds: float


@dataclass(frozen=True)
class Found:
    """A result, for whoever asked for a sequence."""

    value: Any


Step = Send | Fetch | Put | Sleep | Found
Steps = Generator[Step, Any, T]


@dataclass(frozen=True)
class Outcome:
    """What became of a step, to go on with."""

    value: Any = None
    error: BaseException | None = None

    def resume(self, steps: Steps[Any]) -> Step:
        """The next step. Raises `StopIteration` with the result at the end."""
        return steps.send(self.value) if self.error is None else steps.throw(self.error)


@dataclass(frozen=True)
class Conduct:
    """How requests are repeated; `url` is for messages."""

    url: str
    max_retries: int
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random

    def without_retries(self) -> "Conduct":
        """The same for a caller that repeats by itself."""
        return Conduct(self.url, 0, self.clock, self.draw)

    def delay_seconds(self, num_retries: int, failure: CalotypeError) -> float | None:
        """How long to wait before the next retry, or None if there shall be none.

        `Retry-After` counts where it was sent; otherwise a delay that doubles, between half and all of it.
        """
        if num_retries >= self.max_retries:
            return None
        asked = failure.retry_after_seconds if isinstance(failure, ApiError) else None
        if asked is not None:
            return asked if asked <= MAX_RETRY_AFTER_SECONDS else None
        delay = min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0**num_retries)
        return delay * (0.5 + self.draw() / 2)


def sent(call: Call[T], conduct: Conduct) -> Steps[T]:
    """Send a request until it is answered, and read the answer.

    A request that must not be repeated is sent again only if nothing of it was sent, or if the server says
    that it did nothing with it (429).
    """
    num_retries = 0
    while True:
        failure: CalotypeError | None
        try:
            response = yield Send(call)
        except httpx2.RequestError as error:
            failure = failure_of_connection(conduct.url, error)
            failure.__cause__ = error
            may_repeat = call.is_repeatable or isinstance(error, _NOT_SENT)
        else:
            failure = failure_of(response)
            if failure is None:
                return _read(call, response)
            may_repeat = call.is_repeatable or response.status_code == 429
        delay = conduct.delay_seconds(num_retries, failure)
        if delay is None or not (failure.retryable and may_repeat):
            raise failure
        yield Sleep(delay)
        num_retries += 1


def listed(filters: dict[str, Any], conduct: Conduct) -> Steps[None]:
    """Every job of a list, page by page."""
    cursor = None
    while True:
        page: JobPage = yield from sent(calls.list_jobs(filters, cursor), conduct)
        for job in page.jobs:
            yield Found(job)
        cursor = page.next_cursor
        if not cursor:
            return


def watched_job(job_id: str, poll_seconds: float, conduct: Conduct) -> Steps[Job]:
    """A job, now and at every look until it has ended."""
    return _watched(lambda wait: calls.get_job(job_id, wait_seconds=wait), poll_seconds, conduct)


def watched_batch(batch_id: str, poll_seconds: float, conduct: Conduct) -> Steps[Batch]:
    """A batch, now and at every look until all of its jobs have ended."""
    return _watched(lambda _: calls.get_batch(batch_id), poll_seconds, conduct)


def ended_job(job_id: str, timeout_seconds: float | None, conduct: Conduct) -> Steps[Job]:
    """The job once it has ended. Raises `WaitTimeoutError` with what was seen last."""
    poll_seconds = JOB_POLL_SECONDS if timeout_seconds is None else min(JOB_POLL_SECONDS, timeout_seconds)
    return _ended(watched_job(job_id, poll_seconds, conduct), timeout_seconds, conduct)


def ended_batch(batch_id: str, timeout_seconds: float | None, conduct: Conduct) -> Steps[Batch]:
    """The batch once all of its jobs have ended. Raises `WaitTimeoutError` with what was seen last."""
    return _ended(watched_batch(batch_id, BATCH_POLL_SECONDS, conduct), timeout_seconds, conduct)


def followed(job_ids: Sequence[str], timeout_seconds: float | None, conduct: Conduct) -> Steps[None]:
    """All of these jobs, after each round of looking at those that have not ended."""
    began_at = conduct.clock()
    seen: dict[str, Job] = {}
    while True:
        for job_id in job_ids:
            if job_id not in seen or not seen[job_id].has_ended:
                seen[job_id] = yield from sent(calls.get_job(job_id), conduct)
        yield Found([seen[job_id] for job_id in job_ids])
        unfinished = [job for job in seen.values() if not job.has_ended]
        if not unfinished:
            return
        if timeout_seconds is not None and conduct.clock() - began_at > timeout_seconds:
            raise WaitTimeoutError(*unfinished)
        yield Sleep(FOLLOW_SECONDS)


def downloaded(job: Job | str, index: int, conduct: Conduct) -> Steps[tuple[Job, bytes]]:
    """An image of a job that has succeeded, whole: its SHA-256 is the one that the server recorded."""
    found = job if isinstance(job, Job) and job.has_ended else None
    if found is None:
        found = yield from sent(calls.get_job(job if isinstance(job, str) else job.id), conduct)
    image = next((image for image in found.images if image.index == index), None)
    if image is None and found.state != "succeeded":
        raise JobNotSucceededError(found)
    num_retries = 0
    while True:
        # A fresh link each time: an old one may have expired.
        link = yield from sent(calls.find_image(found.id, index), conduct)
        try:
            response = yield Fetch(link)
        except httpx2.RequestError as error:
            failure: CalotypeError = failure_of_connection(_without_query(link), error)
            failure.__cause__ = error
        else:
            problem = _problem_of_image(response, image)
            if problem is None:
                return found, response.content
            failure = DownloadError(f"image {index} of job {found.id}: {problem}")
        delay = conduct.delay_seconds(num_retries, failure)
        if delay is None or not failure.retryable:
            raise failure
        yield Sleep(delay)
        num_retries += 1


def uploaded(content: bytes, conduct: Conduct) -> Steps[File]:
    """The file of these bytes, sent to the API, or put into its store if it is large."""
    media_type = media_type_of(content)
    if len(content) < LARGE_BYTES or media_type is None:  # the API says what is wrong with it
        return (yield from sent(calls.send_file(content), conduct))
    digest = hashlib.sha256(content).hexdigest()
    num_retries = 0
    while True:
        # A fresh link each time: an old one may have expired.
        begun = yield from sent(calls.begin_upload(digest, len(content), media_type), conduct)
        if isinstance(begun, File):
            return begun
        try:
            response = yield Put(begun.url, begun.headers, content)
        except httpx2.RequestError as error:
            failure: CalotypeError = failure_of_connection(_without_query(begun.url), error)
            failure.__cause__ = error
        else:
            if response.is_success or response.status_code == ALREADY_THERE:
                return (yield from sent(calls.complete_upload(begun.id), conduct))
            failure = UploadError(
                f"the link for the file was refused ({response.status_code} {response.reason_phrase})"
            )
        delay = conduct.delay_seconds(num_retries, failure)
        if delay is None or not failure.retryable:
            raise failure
        yield Sleep(delay)
        num_retries += 1


def _watched(look: Callable[[float], Call[E]], poll_seconds: float, conduct: Conduct) -> Steps[E]:
    """A job or batch, now and at every look until it has ended.

    `look` builds a request that the server holds for so many seconds. A service that is away is waited for,
    `PATIENCE_SECONDS` long, but not at the first look.
    """
    found = yield from sent(look(0), conduct)
    answered_at = conduct.clock()
    yield Found(found)
    while not found.has_ended:
        began_at = conduct.clock()
        try:
            found = yield from sent(look(poll_seconds), conduct.without_retries())
        except CalotypeError as error:
            if not error.retryable or conduct.clock() - answered_at > PATIENCE_SECONDS:
                raise
        else:
            answered_at = conduct.clock()
            yield Found(found)
        if not found.has_ended:
            # A server with too many waiters answers at once.
            yield Sleep(max(0.0, began_at + poll_seconds - conduct.clock()))
    return found


def _ended(watch: Steps[E], timeout_seconds: float | None, conduct: Conduct) -> Steps[E]:
    """The end of a watch. Raises `WaitTimeoutError` with what was seen last."""
    began_at = conduct.clock()
    found: E | None = None
    outcome = Outcome()
    while True:
        try:
            step = outcome.resume(watch)
        except StopIteration as end:
            result: E = end.value
            return result
        is_over = timeout_seconds is not None and conduct.clock() - began_at >= timeout_seconds
        if isinstance(step, Found):
            found, outcome = step.value, Outcome()
            continue
        if is_over and found is not None and not found.has_ended:
            raise WaitTimeoutError(found)
        try:
            outcome = Outcome((yield step))
        except httpx2.RequestError as error:
            outcome = Outcome(error=error)


def _read(call: Call[T], response: httpx2.Response) -> T:
    try:
        return call.read(response)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unexpected(response) from error


def _problem_of_image(response: httpx2.Response, image: Image | None) -> str | None:
    if response.status_code != 200:
        return f"its link was refused ({response.status_code} {response.reason_phrase})"
    if image is not None and hashlib.sha256(response.content).hexdigest() != image.sha256:
        return f"its SHA-256 is not the recorded one ({len(response.content)} bytes came)"
    return None


def _without_query(link: str) -> str:
    """A presigned link for a message: its query is a credential."""
    return link.partition("?")[0]
