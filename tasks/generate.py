"""One job, from the bell to the finished row: claim, generate, encode, upload, finish.

This is the task's straight line, and the one place where engine, rows and blobs meet. The outcome is
written to Postgres before it returns, and then observers are told of it. Nothing is ever raised to Celery:
in the threads pool an escaped exception would leak the slot.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import structlog
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from engine.errors import Canceled, DeviceLost, EngineStopped, StrictUnavailable
from engine.request import GeneratedImage, GenerationRequest
from engine.traceback_places import places_of
from storage import jobs
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import BlobUnavailable, StorageError, Unavailable
from storage.job_views import JobWarning, Outcome, StoredImage, outcome_of
from storage.jobs import Claim, WorkerName
from storage.states import State
from tasks.images.file import content_type, encode_image
from tasks.images.inputs import inputs_of
from tasks.images.parameters import parameters_of
from tasks.images.pixels import Pixels
from tasks.in_flight import Handle, InFlightJob, InFlightJobs
from tasks.isolation import Isolations, NotIsolated
from tasks.job_observers import JobObserver
from tasks.timings import timings_of

log = structlog.get_logger()

ELSEWHERE_BACKOFF_SECONDS = 5.0
"""Before a job looks for another worker than this, which cannot repeat itself, or reaches no database."""

STORE_BACKOFF_SECONDS = 30.0
"""Before images are drawn again that could not be stored: the upload's own budget is over by then."""


class GenerationHandle(Handle, Protocol):
    """What `engine.submit` gives back."""

    @property
    def future(self) -> "Future[GeneratedImage]":
        """Resolves to the image, or to an `EngineError`."""


class Submit(Protocol):
    """`engine.submit`; `before_first_step` runs on the engine's thread, before a solo generation starts."""

    def __call__(
        self, request: GenerationRequest, *, before_first_step: Callable[[], object] | None = None
    ) -> GenerationHandle:
        """Hand one request over."""


@dataclass(frozen=True)
class GeneratePlan:
    """What the task may spend; seconds."""

    lease_seconds: float = 30
    upload_seconds: float = 120
    max_attempts: int = 5


class Generate:
    """The task, with everything that it needs in hand; called on many threads at once."""

    def __init__(
        self,
        *,
        db: Database,
        blobs: Blobs,
        submit: Submit,
        in_flight: InFlightJobs,
        isolations: Isolations,
        worker: WorkerName,
        tiers: Sequence[str],
        plan: GeneratePlan,
        encoding: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
        observers: Sequence[JobObserver] = (),
    ) -> None:
        """`encoding` is told the job whose image file is made while its block runs."""
        self._db = db
        self._blobs = blobs
        self._submit = submit
        self._in_flight = in_flight
        self._isolations = isolations
        self._worker = worker
        self._tiers = tiers
        self._plan = plan
        self._encoding = encoding
        self._observers = observers

    def __call__(self, job_id: str, *, takes_quarantined: bool = True) -> None:
        """Take a job up. Whatever happens is in the row; nothing is raised.

        A bell takes no suspects: whoever rings it does not know how many the worker holds.
        """
        try:
            self._claim_and_run(job_id, takes_quarantined)
        except StorageError as error:
            # The row is as it was, or its lease will run out: the sweeper finds it either way.
            log.warning("claim_failed", job_id=job_id, error=str(error))
        except BaseException as error:
            log.error("task_failed", job_id=job_id, traceback=places_of(error))

    def look_up(self, job_id: str) -> None:
        """Tell the observers what the row of a job says that is not ours; raises `StorageError`."""
        outcome = outcome_of(self._db, job_id)
        self._observe(lambda observer: observer.found(job_id, outcome))

    def _claim_and_run(self, job_id: str, takes_quarantined: bool) -> None:
        claim = jobs.claim(
            self._db,
            job_id,
            tiers=self._tiers,
            worker=self._worker,
            lease_seconds=self._plan.lease_seconds,
            takes_quarantined=takes_quarantined,
        )
        if claim is None:
            log.info("dispatch_stale", job_id=job_id)
            self.look_up(job_id)
            return
        self._observe(lambda observer: observer.claimed(claim))
        with self._in_flight.hold(claim.lease) as in_flight_job:
            try:
                generated = self._generate(claim, in_flight_job)
                stored, file_timings = self._store(claim, generated)
                self._finish(claim, in_flight_job, generated, stored, file_timings)
            except BaseException as error:
                self._settle(claim, in_flight_job, error)

    def _generate(self, claim: Claim, in_flight_job: InFlightJob) -> list[GeneratedImage]:
        """Submit one generation for each image together, and wait for all; one failure stops the rest."""
        handles: list[GenerationHandle] = []
        try:
            mark = self._isolations.of(claim) if claim.job.quarantined else None
            for index, request in enumerate(requests_of(claim, inputs_of(self._db, self._blobs, claim.job))):
                begin = partial(mark.begin, index) if mark else None
                handles.append(self._submit(request, before_first_step=begin))
                if mark:
                    handles[index].future.add_done_callback(partial(mark.end, index))
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        in_flight_job.watch(handles)
        futures = [handle.future for handle in handles]
        done, _ = wait(futures, return_when="FIRST_EXCEPTION")
        if any(future.exception() for future in done):
            for handle in handles:
                handle.cancel()
            wait(futures)
            raise _first_cause([future.exception() for future in futures])
        return [future.result() for future in futures]

    def _store(
        self, claim: Claim, generated: Sequence[GeneratedImage]
    ) -> tuple[list[StoredImage], dict[str, float]]:
        stored = []
        file_seconds = upload_seconds = 0.0
        for index, image in enumerate(generated):
            seed, started = claim.job.parameters.seed_of(index), time.monotonic()
            with self._encoding(claim.job.id):
                data = encode_image(
                    image.pixels,
                    claim.job.parameters.output_format,
                    quality=claim.job.parameters.output_quality,
                    parameters=parameters_of(claim.job, seed) if claim.embed_parameters else None,
                )
            encoded = time.monotonic()
            key = object_key(claim, index)
            blob = self._blobs.put(
                key,
                data,
                content_type=content_type(claim.job.parameters.output_format),
                budget_seconds=self._plan.upload_seconds,
            )
            file_seconds += encoded - started
            upload_seconds += time.monotonic() - encoded
            height, width = image.pixels.shape[:2]
            stored.append(StoredImage(index, seed, key, blob.sha256, blob.num_bytes, width, height))
        return stored, {"file_seconds": file_seconds, "upload_seconds": upload_seconds}

    def _finish(
        self,
        claim: Claim,
        in_flight_job: InFlightJob,
        generated: Sequence[GeneratedImage],
        stored: Sequence[StoredImage],
        file_timings: dict[str, float],
    ) -> None:
        said = dict.fromkeys(warning for image in generated for warning in image.warnings)
        warnings = [JobWarning(code=one.code, field=one.field, detail=one.detail) for one in said]
        timings = {**timings_of(generated), **file_timings}
        timings = {name: round(value, 4) for name, value in timings.items()}

        def finish() -> State | None:
            is_ours = jobs.finish(self._db, claim.lease, stored=stored, warnings=warnings, timings=timings)
            return State.SUCCEEDED if is_ours else None

        self._write(claim, in_flight_job, finish, timings=timings)

    def _settle(self, claim: Claim, in_flight_job: InFlightJob, error: BaseException) -> None:
        """Write down a failure: the error's class says whether another try can help."""
        if in_flight_job.lost:
            log.warning("lease_lost", job_id=claim.job.id, attempt=claim.lease.attempt)
            self.look_up(claim.job.id)
            return
        if isinstance(error, DeviceLost):
            return  # the process ends and its leases with it: a crash, whose suspects run alone next
        code = getattr(error, "code", "internal_error")
        detail = str(error) or type(error).__name__
        if code == "internal_error":
            log.error("job_crashed", job_id=claim.job.id, traceback=places_of(error))
            detail = f"{type(error).__name__} in the worker"
        if getattr(error, "retryable", True):
            # Another worker can do it, or anybody once the store is back: no fault of the job's.
            is_ours = isinstance(error, EngineStopped | StrictUnavailable | BlobUnavailable)
            backoff_seconds = 2.0**claim.job.num_failures
            if isinstance(error, StrictUnavailable | NotIsolated):
                backoff_seconds = ELSEWHERE_BACKOFF_SECONDS
            elif isinstance(error, BlobUnavailable):
                backoff_seconds = STORE_BACKOFF_SECONDS
            elif isinstance(error, EngineStopped):
                backoff_seconds = 0
            write = partial(
                jobs.release,
                self._db,
                claim.lease,
                code=code,
                detail=detail,
                charged=not is_ours,
                max_attempts=self._plan.max_attempts,
                backoff_seconds=backoff_seconds,
            )
        else:
            write = partial(jobs.fail, self._db, claim.lease, code=code, detail=detail, retryable=False)
        self._write(claim, in_flight_job, write, error_code=code, error_detail=detail)

    def _write(
        self, claim: Claim, in_flight_job: InFlightJob, write: Callable[[], str | None], **facts: Any
    ) -> None:
        """Write an outcome, for as long as a lease can last while the database is away.

        `write` gives the new state; `facts` are of the `Outcome` that is told where it was written.
        """
        tries = Retrying(
            retry=retry_if_exception_type(Unavailable),
            wait=wait_random_exponential(multiplier=0.1, max=2),
            stop=stop_after_delay(self._plan.lease_seconds),
            reraise=True,
        )
        state = tries(write)
        # No row back: either the answer to our own COMMIT was lost, or the lease is another's. The row
        # is right in both cases; our objects, if nobody points at them, are orphans to be collected.
        log.info(
            "job_settled" if state else "lease_lost",
            job_id=claim.job.id,
            attempt=claim.lease.attempt,
            outcome=facts.get("error_code", State.SUCCEEDED.value),
        )
        if state is None:
            self.look_up(claim.job.id)
            return
        outcome = Outcome(
            state=State(state),
            seconds=in_flight_job.seconds,
            num_images=claim.job.parameters.num_images,
            **facts,
        )
        self._observe(lambda observer: observer.settled(claim, outcome))

    def _observe(self, tell: Callable[[JobObserver], None]) -> None:
        for observer in self._observers:
            try:
                tell(observer)
            except Exception:
                # The row is written: whoever merely watches must not undo that.
                log.exception("observer_failed")


def requests_of(claim: Claim, inputs: Mapping[str, tuple[Pixels, ...]]) -> list[GenerationRequest]:
    """As many generations as the job wants images; image i is the single image of seed + i."""
    job = claim.job
    return [
        GenerationRequest(
            model=job.model,
            parameters=replace(job.parameters, seed=job.parameters.seed_of(index), num_images=1),
            seconds_left=claim.seconds_left,
            lane="bulk" if job.lane == "bulk" else "interactive",
            job_id=job.id,
            account=job.account_id,
            isolated=job.quarantined,
            inputs=inputs,
        )
        for index in range(job.parameters.num_images)
    ]


def object_key(claim: Claim, index: int) -> str:
    """A key that no other attempt, worker or account can have chosen."""
    job, tail = claim.job, secrets.token_hex(8)
    return f"{job.account_id}/{job.id}/a{claim.lease.attempt}/{index}-{tail}.{job.parameters.output_format}"


def _first_cause(errors: Sequence[BaseException | None]) -> BaseException:
    """The error that ended the job: a cancellation that merely followed it comes last."""
    found = [error for error in errors if error is not None]
    return min(found, key=lambda error: isinstance(error, Canceled))
