"""`AsyncClient`: the methods of `Client` for asyncio, as coroutines and asynchronous iterators.

Owns the connections and sends the requests; everything else is shared with `Client`, which documents more.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2

from . import __version__, calls, steps
from .connection import connection_to
from .files import image_path, read_csv, read_image, write_whole
from .presigned import hide_query_async
from .resources import Batch, File, Job, JobParameters, Model, Tier, UsageReport
from .steps import Fetch, Found, Outcome, Put, RetryPolicy, Send, Sleep, Step, Steps
from .webhooks import verify_webhook

T = TypeVar("T")


class AsyncClient:
    """An asyncio client for one account at one server. Close it, or use it as a context manager.

    It takes the arguments of `Client` and reads the same environment variables.
    """

    verify_webhook = staticmethod(verify_webhook)

    def __init__(
        self,
        *,
        url: str | None = None,
        api_key: str | None = None,
        timeout_seconds: float = 30,
        max_retries: int = 2,
        ca_file: str | Path | None = None,
    ) -> None:
        self._connection = connection_to(
            url, api_key, timeout_seconds=timeout_seconds, ca_file=ca_file, version=__version__
        )
        self._retry_policy = RetryPolicy(self._connection.url, max_retries)
        self._api = httpx2.AsyncClient(**self._connection.api_options)
        self._links = httpx2.AsyncClient(
            **self._connection.link_options, event_hooks={"request": [hide_query_async]}
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._api.aclose()
        await self._links.aclose()

    @property
    def url(self) -> str:
        """The address of the server."""
        return self._connection.url

    async def submit(
        self,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        wait_seconds: int = 0,
        **parameters: Unpack[JobParameters],
    ) -> Job:
        """Submit a job; with `wait_seconds`, return once it has ended or after that time.

        `parameters` are those of `POST /v1/jobs`, such as `width`, `seed` or `output_format`. The request has
        an `Idempotency-Key`, a random one if none is given, so that a repeated request creates one job only.
        """
        return await self._run(
            steps.sent(
                calls.submit(prompt, parameters, idempotency_key=idempotency_key, wait_seconds=wait_seconds),
                self._retry_policy,
            )
        )

    async def get(self, job_id: str, *, wait_seconds: float = 0) -> Job:
        """The job now, or as soon as it ends within `wait_seconds`."""
        return await self._run(
            steps.sent(calls.get_job(job_id, wait_seconds=wait_seconds), self._retry_policy)
        )

    async def wait(self, job: Job | str, *, timeout_seconds: float | None = None) -> Job:
        """The job once it has ended, in any final state (see `raise_unless_succeeded`).

        Raises `WaitTimeoutError`; the job goes on. The server may restart in the meantime.
        """
        return await self._run(steps.ended_job(_id(job), timeout_seconds, self._retry_policy))

    def watch(self, job: Job | str, *, poll_seconds: float = 1) -> AsyncIterator[Job]:
        """The job, now and after each poll, until it has ended."""
        return self._iterate(steps.watched_job(_id(job), poll_seconds, self._retry_policy))

    def jobs(
        self,
        *,
        state: str | Sequence[str] | None = None,
        tier: str | None = None,
        lane: str | None = None,
        batch_id: str | None = None,
        tag: str | None = None,
        page_size: int = 100,
    ) -> AsyncIterator[Job]:
        """All matching jobs, newest first. Pages are requested as they are needed."""
        filters = {"state": state, "tier": tier, "lane": lane, "batch_id": batch_id}
        return self._iterate(steps.listed({**filters, "tag": tag, "limit": page_size}, self._retry_policy))

    def follow(
        self, jobs: Iterable[Job | str], *, timeout_seconds: float | None = None
    ) -> AsyncIterator[list[Job]]:
        """All of these jobs, now and after each round of polls, until all have ended.

        Raises `WaitTimeoutError` with the jobs that have not ended.
        """
        return self._iterate(steps.followed([_id(job) for job in jobs], timeout_seconds, self._retry_policy))

    async def cancel(self, job: Job | str) -> Job:
        """Cancel a job; a running one stops at its next step. Raises `ConflictError` if it has ended."""
        return await self._run(steps.sent(calls.cancel_job(_id(job)), self._retry_policy))

    async def delete_images(self, job: Job | str) -> None:
        """Delete the images of a job that has ended; the job stays. Raises `ConflictError` if it is open."""
        await self._run(steps.sent(calls.delete_images(_id(job)), self._retry_policy))

    async def erase(self, job: Job | str) -> None:
        """Erase a job that has ended: the server then knows only that there was one.

        Raises `ConflictError` if it is open.
        """
        await self._run(steps.sent(calls.erase_job(_id(job)), self._retry_policy))

    async def retry(self, job: Job | str, *, idempotency_key: str | None = None) -> Job:
        """Create a job with the parameters and seed of one that has ended. Raises `ConflictError`."""
        return await self._run(
            steps.sent(calls.retry(_id(job), idempotency_key=idempotency_key), self._retry_policy)
        )

    async def download(self, job: Job | str, to: str | os.PathLike[str], *, index: int = 0) -> Path:
        """Save an image of a succeeded job; `to` is a file, or a folder that exists.

        The SHA-256 is compared with the recorded one first, and the file is written completely or not at
        all. The API key is not sent to the object store. Raises `JobNotSucceededError`, `NotFoundError` if
        there is no such image, and `OSError` if the file cannot be written.
        """
        found, data = await self._run(steps.downloaded(job, index, self._retry_policy))
        path = image_path(to, found, index)
        await asyncio.to_thread(write_whole, path, data)
        return path

    async def image(self, job: Job | str, *, index: int = 0) -> bytes:
        """The bytes of an image, checked as in `download`."""
        return (await self._run(steps.downloaded(job, index, self._retry_policy)))[1]

    async def csv(
        self,
        file: str | os.PathLike[str] | bytes,
        *,
        filename: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        webhook_url: str | None = None,
        delimiter: str | None = None,
        encoding: str | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Upload a CSV of prompts, a path or its bytes, as one batch; see `wait_batch` and `results`.

        `model` and `tag` are for rows that have none. `delimiter` (`semicolon`) and `encoding`
        (`windows-1251`) are detected if left out; `read_as` and `warnings` of the batch say how. An uploaded
        `results_csv` continues its batch: rows that succeeded are skipped. Raises `InvalidRequestError`,
        whose `errors` name line and column, if any row is not valid (nothing is accepted then), and `OSError`
        if the file cannot be read.
        """
        name, content = await asyncio.to_thread(read_csv, file, filename)
        form = {"model": model, "tag": tag, "webhook_url": webhook_url}
        form |= {"delimiter": delimiter, "encoding": encoding}
        return await self._run(
            steps.sent(
                calls.upload_csv(name, content, form, idempotency_key=idempotency_key), self._retry_policy
            )
        )

    async def upload(self, image: str | os.PathLike[str] | bytes) -> File:
        """Upload a PNG, JPEG or WebP, a path or its bytes, from which jobs may start by its `id`.

        A large file is sent directly to the object store. The same image always gives the same file. It is
        deleted after a day unless a job uses it. Raises `InvalidRequestError` if it is not such an image,
        `UploadError`, and `OSError` if the file cannot be read.
        """
        return await self._run(steps.uploaded(read_image(image), self._retry_policy))

    async def get_batch(self, batch_id: str) -> Batch:
        """The batch now."""
        return await self._run(steps.sent(calls.get_batch(batch_id), self._retry_policy))

    async def wait_batch(self, batch: Batch | str, *, timeout_seconds: float | None = None) -> Batch:
        """The batch once all of its jobs have ended. Raises `WaitTimeoutError`; the batch goes on."""
        return await self._run(steps.ended_batch(_id(batch), timeout_seconds, self._retry_policy))

    def watch_batch(self, batch: Batch | str, *, poll_seconds: float = 1) -> AsyncIterator[Batch]:
        """The batch, now and after each poll, until all of its jobs have ended."""
        return self._iterate(steps.watched_batch(_id(batch), poll_seconds, self._retry_policy))

    async def cancel_batch(self, batch: Batch | str) -> Batch:
        """Cancel the jobs of a batch that have not ended. Raises `ConflictError` if all have."""
        return await self._run(steps.sent(calls.cancel_batch(_id(batch)), self._retry_policy))

    async def retry_batch(self, batch: Batch | str, *, idempotency_key: str | None = None) -> Batch:
        """Create a batch of the jobs that failed, expired or were canceled, with the same seeds."""
        call = calls.retry_batch(_id(batch), idempotency_key=idempotency_key)
        return await self._run(steps.sent(call, self._retry_policy))

    async def results_csv(self, batch: Batch | str) -> bytes:
        """The file `results.csv`, for a spreadsheet or to continue the batch with `csv`."""
        return await self._run(steps.sent(calls.get_results_file(_id(batch)), self._retry_policy))

    async def results(self, batch: Batch | str) -> list[dict[str, str]]:
        """The rows of `results.csv`: each row of the CSV and its result so far, by column."""
        return await self._run(steps.sent(calls.get_report(_id(batch), "results"), self._retry_policy))

    async def errors(self, batch: Batch | str) -> list[dict[str, str]]:
        """The rows of `errors.csv`: those that ended without an image and why, by column."""
        return await self._run(steps.sent(calls.get_report(_id(batch), "errors"), self._retry_policy))

    async def usage(
        self,
        *,
        by: Sequence[str] = ("day",),
        since: date | str | None = None,
        until: date | str | None = None,
        key_id: str | None = None,
        batch_id: str | None = None,
        tag: str | None = None,
    ) -> UsageReport:
        """The sums of succeeded jobs by any of `day`, `key`, `batch`, `tag` and `tier`, later days first.

        They cover the days (UTC) from `since` to before `until` on which jobs ended, the last 30 if both are
        left out. All pages of the list are requested.
        """
        days = {"since": since, "until": until}
        filters = {"by": list(by), **days, "key_id": key_id, "batch_id": batch_id, "tag": tag}
        return await self._run(steps.whole_usage(filters, self._retry_policy))

    async def tiers(self) -> list[Tier]:
        """The tiers and the lengths of their queues."""
        return await self._run(steps.sent(calls.list_tiers(), self._retry_policy))

    async def models(self) -> list[Model]:
        """The models and their limits."""
        return await self._run(steps.sent(calls.list_models(), self._retry_policy))

    async def _run(self, goal: Steps[T]) -> T:
        outcome = Outcome()
        while True:
            try:
                step = outcome.resume(goal)
            except StopIteration as end:
                result: T = end.value
                return result
            outcome = await self._perform(step)

    async def _iterate(self, goal: Steps[Any]) -> AsyncIterator[Any]:
        outcome = Outcome()
        while True:
            try:
                step = outcome.resume(goal)
            except StopIteration:
                return
            if isinstance(step, Found):
                yield step.value
            outcome = await self._perform(step)

    async def _perform(self, step: Step) -> Outcome:
        try:
            match step:
                case Send(call):
                    options = self._connection.request_options(call)
                    return Outcome(await self._api.request(call.method, call.path, **options))
                case Fetch(url):
                    return Outcome(await self._links.get(url))
                case Put(url, headers, content):
                    return Outcome(await self._links.put(url, headers=dict(headers), content=content))
                case Sleep(seconds):
                    await asyncio.sleep(seconds)
        except httpx2.RequestError as error:
            return Outcome(error=error)
        return Outcome()


def _id(what: Job | Batch | str) -> str:
    return what if isinstance(what, str) else what.id
