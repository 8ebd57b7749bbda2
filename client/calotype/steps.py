"""The logic that `Client` and `AsyncClient` share, as generators of steps that perform no I/O.

Owns retries, polling, paging and the check of a download. A generator yields a `Send`, `Fetch`, `Put` or
`Sleep` and receives the response, or the exception. It yields a `Found` for each result of a sequence and
returns the last one.
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
from .resources import Batch, File, Image, Job, JobPage, Usage, UsagePage, UsageReport

PATIENCE_SECONDS = 60.0
"""How long watching continues while the server does not answer."""
MAX_RETRY_AFTER_SECONDS = 60.0
"""The longest `Retry-After` that is obeyed; for a longer one, the error states its value."""
LARGE_BYTES = 4_000_000
"""A file of this size or more is sent directly to the object store, so that it does not occupy the API."""
ALREADY_THERE = 412
"""The status of an object store if the same bytes were already put at this link."""
FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS = 0.5, 8.0
FOLLOW_SECONDS, JOB_POLL_SECONDS, BATCH_POLL_SECONDS = 0.25, 5.0, 1.0

_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
"""Failures before any byte of the request was sent."""


T = TypeVar("T")
E = TypeVar("E", Job, Batch)


@dataclass(frozen=True)
class Send:
    """Send this request with the API key; receives the response."""

    call: Call[Any]


@dataclass(frozen=True)
class Fetch:
    """GET this presigned link without the API key, which the store must not see; receives the response."""

    url: str


@dataclass(frozen=True)
class Put:
    """PUT these bytes at a presigned link without the API key; receives the response."""

    url: str
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True)
class Sleep:
    """Wait."""

    seconds: float


@dataclass(frozen=True)
class Found:
    """A result of a sequence, for the caller."""

    value: Any


Step = Send | Fetch | Put | Sleep | Found
Steps = Generator[Step, Any, T]


@dataclass(frozen=True)
class Outcome:
    """The result of a step, with which its generator continues."""

    value: Any = None
    error: BaseException | None = None

    def resume(self, steps: Steps[Any]) -> Step:
        """The next step. Raises `StopIteration` with the result at the end."""
        return steps.send(self.value) if self.error is None else steps.throw(self.error)


@dataclass(frozen=True)
class RetryPolicy:
    """When and how often requests are repeated; `url` is for messages."""

    url: str
    max_retries: int
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random

    def without_retries(self) -> "RetryPolicy":
        """The same without retries, for a caller that repeats by itself."""
        return RetryPolicy(self.url, 0, self.clock, self.draw)

    def delay_seconds(self, num_retries: int, failure: CalotypeError) -> float | None:
        """The delay before the next retry, or None if there is none.

        It is that of `Retry-After` if the server sent one; otherwise a random one between half and all of a
        delay that doubles with each retry.
        """
        if num_retries >= self.max_retries:
            return None
        asked = failure.retry_after_seconds if isinstance(failure, ApiError) else None
        if asked is not None:
            return asked if asked <= MAX_RETRY_AFTER_SECONDS else None
        delay = min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0**num_retries)
        return delay * (0.5 + self.draw() / 2)


def sent(call: Call[T], policy: RetryPolicy) -> Steps[T]:
    """Send a request, with retries, and read the response.

    A request that must not be repeated is sent again only if no byte of it was sent, or if the server
    answered 429, which means that it did nothing.
    """
    num_retries = 0
    while True:
        failure: CalotypeError | None
        try:
            response = yield Send(call)
        except httpx2.RequestError as error:
            failure = failure_of_connection(policy.url, error)
            failure.__cause__ = error
            may_repeat = call.is_repeatable or isinstance(error, _NOT_SENT)
        else:
            failure = failure_of(response)
            if failure is None:
                return _read(call, response)
            may_repeat = call.is_repeatable or response.status_code == 429
        delay = policy.delay_seconds(num_retries, failure)
        if delay is None or not (failure.retryable and may_repeat):
            raise failure
        yield Sleep(delay)
        num_retries += 1


def listed(filters: dict[str, Any], policy: RetryPolicy) -> Steps[None]:
    """Every job of a list, page by page."""
    cursor = None
    while True:
        page: JobPage = yield from sent(calls.list_jobs(filters, cursor), policy)
        for job in page.jobs:
            yield Found(job)
        cursor = page.next_cursor
        if not cursor:
            return


def whole_usage(filters: dict[str, Any], policy: RetryPolicy) -> Steps[UsageReport]:
    """Every row of usage, page by page, and the sum, which the server says on each page.

    All pages are of the days of the first one, also over midnight. Where jobs end between two pages, the sum,
    which is the last page's, is newer than the rows before it.
    """
    rows: list[Usage] = []
    cursor = None
    while True:
        page: UsagePage = yield from sent(calls.list_usage(filters, cursor), policy)
        rows += page.rows
        cursor = page.next_cursor
        if not cursor:
            return UsageReport(page.since, page.until, tuple(rows), page.total)
        filters = {**filters, "since": page.since, "until": page.until}


def watched_job(job_id: str, poll_seconds: float, policy: RetryPolicy) -> Steps[Job]:
    """The job, now and after each poll, until it has ended."""
    return _watched(lambda wait: calls.get_job(job_id, wait_seconds=wait), poll_seconds, policy)


def watched_batch(batch_id: str, poll_seconds: float, policy: RetryPolicy) -> Steps[Batch]:
    """The batch, now and after each poll, until all of its jobs have ended."""
    return _watched(lambda _: calls.get_batch(batch_id), poll_seconds, policy)


def ended_job(job_id: str, timeout_seconds: float | None, policy: RetryPolicy) -> Steps[Job]:
    """The job once it has ended. Raises `WaitTimeoutError` with its last known state."""
    poll_seconds = JOB_POLL_SECONDS if timeout_seconds is None else min(JOB_POLL_SECONDS, timeout_seconds)
    return _ended(watched_job(job_id, poll_seconds, policy), timeout_seconds, policy)


def ended_batch(batch_id: str, timeout_seconds: float | None, policy: RetryPolicy) -> Steps[Batch]:
    """The batch once all of its jobs have ended. Raises `WaitTimeoutError` with its last known state."""
    return _ended(watched_batch(batch_id, BATCH_POLL_SECONDS, policy), timeout_seconds, policy)


def followed(job_ids: Sequence[str], timeout_seconds: float | None, policy: RetryPolicy) -> Steps[None]:
    """All of these jobs, after each round of polling those that have not ended."""
    began_at = policy.clock()
    seen: dict[str, Job] = {}
    while True:
        for job_id in job_ids:
            if job_id not in seen or not seen[job_id].has_ended:
                seen[job_id] = yield from sent(calls.get_job(job_id), policy)
        yield Found([seen[job_id] for job_id in job_ids])
        unfinished = [job for job in seen.values() if not job.has_ended]
        if not unfinished:
            return
        if timeout_seconds is not None and policy.clock() - began_at > timeout_seconds:
            raise WaitTimeoutError(*unfinished)
        yield Sleep(FOLLOW_SECONDS)


def downloaded(job: Job | str, index: int, policy: RetryPolicy) -> Steps[tuple[Job, bytes]]:
    """A complete image of a succeeded job: its SHA-256 is the one that the server recorded."""
    found = job if isinstance(job, Job) and job.has_ended else None
    if found is None:
        found = yield from sent(calls.get_job(job if isinstance(job, str) else job.id), policy)
    image = next((image for image in found.images if image.index == index), None)
    if image is None and found.state != "succeeded":
        raise JobNotSucceededError(found)
    num_retries = 0
    while True:
        # Ask for a new link each time, because an old one may have expired.
        link = yield from sent(calls.find_image(found.id, index), policy)
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
        delay = policy.delay_seconds(num_retries, failure)
        if delay is None or not failure.retryable:
            raise failure
        yield Sleep(delay)
        num_retries += 1


def uploaded(content: bytes, policy: RetryPolicy) -> Steps[File]:
    """The file of these bytes: sent to the API, or to its object store if it is large."""
    media_type = media_type_of(content)
    if len(content) < LARGE_BYTES or media_type is None:  # the API says why it is not valid
        return (yield from sent(calls.send_file(content), policy))
    digest = hashlib.sha256(content).hexdigest()
    num_retries = 0
    while True:
        # Ask for a new link each time, because an old one may have expired.
        begun = yield from sent(calls.begin_upload(digest, len(content), media_type), policy)
        if isinstance(begun, File):
            return begun
        try:
            response = yield Put(begun.url, begun.headers, content)
        except httpx2.RequestError as error:
            failure: CalotypeError = failure_of_connection(_without_query(begun.url), error)
            failure.__cause__ = error
        else:
            if response.is_success or response.status_code == ALREADY_THERE:
                return (yield from sent(calls.complete_upload(begun.id), policy))
            failure = UploadError(
                f"the object store rejected the upload ({response.status_code} {response.reason_phrase})"
            )
        delay = policy.delay_seconds(num_retries, failure)
        if delay is None or not failure.retryable:
            raise failure
        yield Sleep(delay)
        num_retries += 1


def _watched(look: Callable[[float], Call[E]], poll_seconds: float, policy: RetryPolicy) -> Steps[E]:
    """A job or batch, now and after each poll, until it has ended.

    `look` builds a request that the server may hold for the given seconds. After the first response, a server
    that does not answer is polled for `PATIENCE_SECONDS`.
    """
    found = yield from sent(look(0), policy)
    answered_at = policy.clock()
    yield Found(found)
    while not found.has_ended:
        began_at = policy.clock()
        try:
            found = yield from sent(look(poll_seconds), policy.without_retries())
        except CalotypeError as error:
            if not error.retryable or policy.clock() - answered_at > PATIENCE_SECONDS:
                raise
        else:
            answered_at = policy.clock()
            yield Found(found)
        if not found.has_ended:
            # A server with too many waiting requests answers at once.
            yield Sleep(max(0.0, began_at + poll_seconds - policy.clock()))
    return found


def _ended(watch: Steps[E], timeout_seconds: float | None, policy: RetryPolicy) -> Steps[E]:
    """The last result of `watch`. Raises `WaitTimeoutError` with the last known state."""
    began_at = policy.clock()
    found: E | None = None
    outcome = Outcome()
    while True:
        try:
            step = outcome.resume(watch)
        except StopIteration as end:
            result: E = end.value
            return result
        is_over = timeout_seconds is not None and policy.clock() - began_at >= timeout_seconds
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
        return f"its link was rejected ({response.status_code} {response.reason_phrase})"
    if image is not None and hashlib.sha256(response.content).hexdigest() != image.sha256:
        return f"its SHA-256 differs from the recorded one ({len(response.content)} bytes received)"
    return None


def _without_query(link: str) -> str:
    """A presigned link for a message, without its query, which is a credential."""
    return link.partition("?")[0]
