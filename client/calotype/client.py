"""`Client`: one method for each thing that a user does, in ordinary blocking Python.

Owns the connections and the sending. What is sent, when it is repeated and what an answer means is the same
for `AsyncClient` and is in `calls` and `steps`.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2

from . import __version__, calls, steps
from .connection import connection_to
from .files import image_path, read_csv, read_image, write_whole
from .parameters import JobParameters
from .presigned import hide_query
from .resources import Batch, File, Job, Model, Tier
from .steps import Conduct, Fetch, Found, Outcome, Put, Send, Sleep, Step, Steps
from .webhooks import verify_webhook

T = TypeVar("T")


class Client:
    """One account's view of one installation. Close it, or use it as a context manager.

    `url` and `api_key` come from CALOTYPE_URL and CALOTYPE_API_KEY if left out. Certificates are those of
    the system or of SSL_CERT_FILE, and beside them those in `ca_file` or CALOTYPE_CA_FILE; proxies are those
    of the environment, but none for this machine. `timeout_seconds` bounds connecting, each write and each
    read. A request that fails for a moment is sent again `max_retries` times. May be used by many threads.

    Raises `ConfigurationError`; every method raises errors of `CalotypeError`'s tree.
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
        self._conduct = Conduct(self._connection.url, max_retries)
        self._api = httpx2.Client(**self._connection.api_options)
        self._links = httpx2.Client(**self._connection.link_options, event_hooks={"request": [hide_query]})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._api.close()
        self._links.close()

    @property
    def url(self) -> str:
        """The address of the installation."""
        return self._connection.url

    def submit(
        self,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        wait_seconds: int = 0,
        **parameters: Unpack[JobParameters],
    ) -> Job:
        """Submit a job; with `wait_seconds`, return once it has ended or after that time.

        `parameters` are those of `POST /v1/jobs`, as `width`, `seed` or `output_format`. The request carries
        an `Idempotency-Key`, one made here if none is given, so that a lost answer never draws twice.
        """
        return self._run(
            steps.sent(
                calls.submit(prompt, parameters, idempotency_key=idempotency_key, wait_seconds=wait_seconds),
                self._conduct,
            )
        )

    def get(self, job_id: str, *, wait_seconds: float = 0) -> Job:
        """The job now, or as soon as it ends within `wait_seconds`."""
        return self._run(steps.sent(calls.get_job(job_id, wait_seconds=wait_seconds), self._conduct))

    def wait(self, job: Job | str, *, timeout_seconds: float | None = None) -> Job:
        """The job once it has ended, however it ended (`raise_unless_succeeded` tells).

        Raises `WaitTimeoutError`; the job goes on. A service that restarts meanwhile is waited for.
        """
        return self._run(steps.ended_job(_id(job), timeout_seconds, self._conduct))

    def watch(self, job: Job | str, *, poll_seconds: float = 1) -> Iterator[Job]:
        """The job, now and at every look until it has ended; the last one is its end."""
        return self._iterate(steps.watched_job(_id(job), poll_seconds, self._conduct))

    def jobs(
        self,
        *,
        state: str | Sequence[str] | None = None,
        tier: str | None = None,
        lane: str | None = None,
        batch_id: str | None = None,
        page_size: int = 100,
    ) -> Iterator[Job]:
        """Every job that matches, newest first. Pages are asked for as they are needed."""
        filters = {"state": state, "tier": tier, "lane": lane, "batch_id": batch_id, "limit": page_size}
        return self._iterate(steps.listed(filters, self._conduct))

    def follow(
        self, jobs: Iterable[Job | str], *, timeout_seconds: float | None = None
    ) -> Iterator[list[Job]]:
        """All of these jobs, now and after each round of looks, until all have ended.

        Raises `WaitTimeoutError` with those that have not.
        """
        return self._iterate(steps.followed([_id(job) for job in jobs], timeout_seconds, self._conduct))

    def cancel(self, job: Job | str) -> Job:
        """Cancel a job. One that runs ends at its next step. Raises `ConflictError` if it has ended."""
        return self._run(steps.sent(calls.cancel_job(_id(job)), self._conduct))

    def retry(self, job: Job | str, *, idempotency_key: str | None = None) -> Job:
        """A new job with the parameters and seed of one that has ended, or `ConflictError`."""
        return self._run(steps.sent(calls.retry(_id(job), idempotency_key=idempotency_key), self._conduct))

    def download(self, job: Job | str, to: str | os.PathLike[str], *, index: int = 0) -> Path:
        """Save an image of a job that has succeeded; `to` is a file, or a folder that exists.

        The file is written whole or not at all, after its SHA-256 was compared with the server's. The key
        is not sent to the object store that the API redirects to. Raises `JobNotSucceededError`, and
        `NotFoundError` if there is no such image, and `OSError` if the file cannot be written.
        """
        found, data = self._run(steps.downloaded(job, index, self._conduct))
        path = image_path(to, found, index)
        write_whole(path, data)
        return path

    def image(self, job: Job | str, *, index: int = 0) -> bytes:
        """The bytes of an image, checked as `download` does."""
        return self._run(steps.downloaded(job, index, self._conduct))[1]

    def csv(
        self,
        file: str | os.PathLike[str] | bytes,
        *,
        filename: str | None = None,
        model: str | None = None,
        webhook_url: str | None = None,
        delimiter: str | None = None,
        encoding: str | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Upload a CSV of prompts, a path or its bytes, as one batch; `wait_batch` and `results` go on.

        `delimiter` (`semicolon`) and `encoding` (`windows-1251`) are recognised if left out; the batch's
        `read_as` and `warnings` say how. What `results_csv` gave continues: what succeeded is left alone.
        Raises `InvalidRequestError` whose `errors` name line and column, and then nothing was accepted,
        and `OSError` if the file cannot be read.
        """
        name, content = read_csv(file, filename)
        form = {"model": model, "webhook_url": webhook_url, "delimiter": delimiter, "encoding": encoding}
        return self._run(
            steps.sent(calls.upload_csv(name, content, form, idempotency_key=idempotency_key), self._conduct)
        )

    def upload(self, image: str | os.PathLike[str] | bytes) -> File:
        """Send an image that jobs may start from, a path or its bytes; a job names it by its `id`.

        A PNG, JPEG or WebP. A large one goes straight to the object store. The same image again gives the
        same file. It is deleted after a day unless a job names it. Raises `InvalidRequestError` for what is
        no such image, `UploadError`, and `OSError` if the file cannot be read.
        """
        return self._run(steps.uploaded(read_image(image), self._conduct))

    def get_batch(self, batch_id: str) -> Batch:
        """The batch now."""
        return self._run(steps.sent(calls.get_batch(batch_id), self._conduct))

    def wait_batch(self, batch: Batch | str, *, timeout_seconds: float | None = None) -> Batch:
        """The batch once all of its jobs have ended. Raises `WaitTimeoutError`; the batch goes on."""
        return self._run(steps.ended_batch(_id(batch), timeout_seconds, self._conduct))

    def watch_batch(self, batch: Batch | str, *, poll_seconds: float = 1) -> Iterator[Batch]:
        """The batch, now and at every look until all of its jobs have ended; the last one is its end."""
        return self._iterate(steps.watched_batch(_id(batch), poll_seconds, self._conduct))

    def cancel_batch(self, batch: Batch | str) -> Batch:
        """Cancel what has not ended of a batch. Raises `ConflictError` if all has."""
        return self._run(steps.sent(calls.cancel_batch(_id(batch)), self._conduct))

    def retry_batch(self, batch: Batch | str, *, idempotency_key: str | None = None) -> Batch:
        """A new batch of the jobs of one that failed, expired or were canceled, with their seeds."""
        call = calls.retry_batch(_id(batch), idempotency_key=idempotency_key)
        return self._run(steps.sent(call, self._conduct))

    def results_csv(self, batch: Batch | str) -> bytes:
        """`results.csv` as it is: for a spreadsheet, and for `csv` once more."""
        return self._run(steps.sent(calls.get_results_file(_id(batch)), self._conduct))

    def results(self, batch: Batch | str) -> list[dict[str, str]]:
        """`results.csv`: each row of the CSV and what became of it so far, by column."""
        return self._run(steps.sent(calls.get_report(_id(batch), "results"), self._conduct))

    def errors(self, batch: Batch | str) -> list[dict[str, str]]:
        """`errors.csv`: the rows that ended without an image and why, by column."""
        return self._run(steps.sent(calls.get_report(_id(batch), "errors"), self._conduct))

    def tiers(self) -> list[Tier]:
        """The classes of sizes, and how long their queues are."""
        return self._run(steps.sent(calls.list_tiers(), self._conduct))

    def models(self) -> list[Model]:
        """The models and their limits."""
        return self._run(steps.sent(calls.list_models(), self._conduct))

    def _run(self, goal: Steps[T]) -> T:
        outcome = Outcome()
        while True:
            try:
                step = outcome.resume(goal)
            except StopIteration as end:
                result: T = end.value
                return result
            outcome = self._perform(step)

    def _iterate(self, goal: Steps[Any]) -> Iterator[Any]:
        outcome = Outcome()
        while True:
            try:
                step = outcome.resume(goal)
            except StopIteration:
                return
            if isinstance(step, Found):
                yield step.value
            outcome = self._perform(step)

    def _perform(self, step: Step) -> Outcome:
        try:
            match step:
                case Send(call):
                    options = self._connection.request_options(call)
                    return Outcome(self._api.request(call.method, call.path, **options))
                case Fetch(url):
                    return Outcome(self._links.get(url))
                case Put(url, headers, content):
                    return Outcome(self._links.put(url, headers=dict(headers), content=content))
                case Sleep(seconds):
                    time.sleep(seconds)
        except httpx2.RequestError as error:
            return Outcome(error=error)
        return Outcome()


def _id(what: Job | Batch | str) -> str:
    return what if isinstance(what, str) else what.id
