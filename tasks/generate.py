"""One job, from its message to the finished row: claim, generate, encode, upload, finish.

This is the one place where engine, rows and blobs meet. The outcome is written to Postgres before the task
returns, and then reported to observers. The task raises nothing: in Celery's thread pool an escaped exception
would leak the slot.
"""

import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import structlog
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from catalogue.accounting import DevicePrice
from catalogue.crash_points import reach
from catalogue.states import State
from engine.errors import Canceled, DeviceLost, EngineStopped, StrictUnavailable, places_of
from engine.request import GeneratedImage, GenerationRequest
from storage import jobs
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import BlobUnavailable, StorageError, Unavailable
from storage.job_views import Outcome, StoredImage, outcome_of
from storage.jobs import Claim, Finished, WorkerName
from tasks.grouped_calls import GroupedCalls
from tasks.images.file import content_type, encode_image, parameters_of
from tasks.images.inputs import Pixels, inputs_of
from tasks.in_flight import Handle, InFlightJob, InFlightJobs
from tasks.isolation import Isolations, NotIsolated
from tasks.job_observers import JobObserver

log = structlog.get_logger()

ELSEWHERE_BACKOFF_SECONDS = 5.0
"""The backoff of a job that this worker cannot run: it is not deterministic, or cannot reach the database."""

STORE_BACKOFF_SECONDS = 30.0
"""The backoff of a job whose images could not be uploaded within their time limit."""


class Submit(Protocol):
    """`engine.submit`; `before_first_step` runs on the engine's thread before an isolated generation."""

    def __call__(
        self, request: GenerationRequest, *, before_first_step: Callable[[], object] | None = None
    ) -> Handle:
        """Submit one request."""


@dataclass(frozen=True)
class GeneratePlan:
    """The limits of one task: durations in seconds, and charged attempts."""

    lease_seconds: float = 30
    upload_seconds: float = 120
    max_attempts: int = 5


class Generate:
    """The body of the task `calotype.generate`; called on many threads at once."""

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
        price: DevicePrice | None = None,
        encoding: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
        observers: Sequence[JobObserver] = (),
    ) -> None:
        """`price` is that of this worker's device, and `encoding` a context for encoding an image file."""
        self._db = db
        self._blobs = blobs
        self._submit = submit
        self._in_flight = in_flight
        self._isolations = isolations
        self._worker = worker
        self._tiers = tiers
        self._plan = plan
        self._price = price
        self._encoding = encoding
        self._observers = observers
        self._claims = GroupedCalls(self._claim_each, shared_errors=(StorageError,))
        self._finishes = GroupedCalls(self._finish_each, shared_errors=(StorageError,))

    def __call__(self, job_id: str, *, takes_quarantined: bool = True) -> None:
        """Run a job. Whatever happens is written to its row; nothing is raised.

        Messages never run quarantined jobs: the sender does not know how many of them the worker holds.
        """
        try:
            claim = self._claim(job_id, takes_quarantined)
            if claim is None:
                log.info("dispatch_stale", job_id=job_id)
                self.look_up(job_id)
            else:
                self._run(claim)
        except StorageError as error:
            # The row is unchanged, or its lease will expire: the sweeper handles both.
            log.warning("claim_failed", job_id=job_id, error=str(error))
        except BaseException as error:
            log.error("task_failed", job_id=job_id, traceback=places_of(error))

    def release(self, claims: Sequence[Claim]) -> None:
        """Give claimed jobs that have not begun back to their queue, uncharged; raises `StorageError`."""
        self._tries()(
            jobs.release_each,
            self._db,
            [claim.lease for claim in claims],
            code=EngineStopped.code,
            detail="its worker ended before it began",
            charged=False,
            max_attempts=self._plan.max_attempts,
            backoff_seconds=0,
        )

    def look_up(self, job_id: str) -> None:
        """Report the row of a job that this worker does not hold to the observers; raises `StorageError`."""
        outcome = outcome_of(self._db, job_id)
        self._observe(lambda observer: observer.found(job_id, outcome))

    def run(self, claim: Claim) -> None:
        """Run a job that this worker has claimed already; nothing is raised."""
        try:
            self._run(claim)
        except BaseException as error:
            log.error("task_failed", job_id=claim.job.id, traceback=places_of(error))

    def _claim(self, job_id: str, takes_quarantined: bool) -> Claim | None:
        if not takes_quarantined:
            return self._claims(job_id)
        return jobs.claim(
            self._db,
            job_id,
            tiers=self._tiers,
            worker=self._worker,
            lease_seconds=self._plan.lease_seconds,
        )

    def _claim_each(self, job_ids: Sequence[str]) -> list[Claim | None]:
        claimed = jobs.claim_each(
            self._db,
            job_ids,
            tiers=self._tiers,
            worker=self._worker,
            lease_seconds=self._plan.lease_seconds,
        )
        # A job that was dispatched twice may be in a group twice: only one of the two runs it.
        return [claimed.pop(job_id, None) for job_id in job_ids]

    def _finish_each(self, finished: Sequence[Finished]) -> list[bool]:
        ours = jobs.finish_each(self._db, finished)
        return [one.lease.job_id in ours for one in finished]

    def _run(self, claim: Claim) -> None:
        with self._in_flight.hold(claim.lease) as in_flight_job:
            self._observe(lambda observer: observer.claimed(claim))
            try:
                reach("claimed")
                generated = self._generate(claim, in_flight_job)
                stored, file_timings = self._store(claim, generated)
                reach("stored")
                self._finish(claim, in_flight_job, generated, stored, file_timings)
            except BaseException as error:
                self._settle(claim, in_flight_job, error)

    def _generate(self, claim: Claim, in_flight_job: InFlightJob) -> list[GeneratedImage]:
        """Submit one generation per image at once and wait for all; one failure cancels the others."""
        handles: list[Handle] = []
        try:
            isolation = self._isolations.of(claim) if claim.job.quarantined else None
            for index, request in enumerate(requests_of(claim, inputs_of(self._db, self._blobs, claim.job))):
                begin = partial(isolation.begin, index) if isolation else None
                handles.append(self._submit(request, before_first_step=begin))
                if isolation:
                    handles[index].future.add_done_callback(partial(isolation.end, index))
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
        warnings = list(dict.fromkeys(warning for image in generated for warning in image.warnings))
        timings = {**timings_of(generated), **file_timings}
        timings = {name: round(value, 4) for name, value in timings.items()}

        # At the price of now: a later change of prices does not change what an ended job cost.
        cost = None if self._price is None else self._price.cost_of(timings["device_seconds"])
        finished = Finished(claim.lease, stored, warnings, timings, claim.completes_batch, cost)

        def finish() -> State | None:
            # The second try after a lost answer to our COMMIT finds no lease, but our own success.
            is_ours = self._finishes(finished) or jobs.is_finished(self._db, claim.lease)
            if is_ours:
                reach("finished")
            return State.SUCCEEDED if is_ours else None

        self._write(claim, in_flight_job, finish, timings=timings)

    def _settle(self, claim: Claim, in_flight_job: InFlightJob, error: BaseException) -> None:
        """Write a failure: fail the job, or release it if the error is retryable."""
        if in_flight_job.lost:
            log.warning("lease_lost", job_id=claim.job.id, attempt=claim.lease.attempt)
            self.look_up(claim.job.id)
            return
        if isinstance(error, DeviceLost):
            return  # the process ends, which releases its jobs and quarantines those on the device
        code = getattr(error, "code", "internal_error")
        detail = str(error) or type(error).__name__
        if code == "internal_error":
            log.error("job_crashed", job_id=claim.job.id, traceback=places_of(error))
            detail = f"{type(error).__name__} in the worker"
        if getattr(error, "retryable", True):
            # Not the job's fault: another worker can run it, or any worker once the store is back.
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
        """Write an outcome, retrying for the length of a lease while the database is down.

        `write` returns the new state; `facts` are fields of the `Outcome` that observers get.
        """
        state = self._tries()(write)
        # Without a state the lease was lost, or the answer to our COMMIT of a failure. The row is right in
        # both cases; objects that no row points to are orphans, which the sweeper collects.
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

    def _tries(self) -> Retrying:
        return Retrying(
            retry=retry_if_exception_type(Unavailable),
            wait=wait_random_exponential(multiplier=0.1, max=2),
            stop=stop_after_delay(self._plan.lease_seconds),
            reraise=True,
        )

    def _observe(self, tell: Callable[[JobObserver], None]) -> None:
        for observer in self._observers:
            try:
                tell(observer)
            except Exception:
                # The row is written: a failing observer must not change that.
                log.exception("observer_failed")


def requests_of(claim: Claim, inputs: Mapping[str, tuple[Pixels, ...]]) -> list[GenerationRequest]:
    """One generation per image of the job; image i equals the image of a one-image job with seed + i."""
    job = claim.job
    return [
        GenerationRequest(
            model=job.model,
            parameters=replace(job.parameters, seed=job.parameters.seed_of(index), num_images=1),
            seconds_left=claim.seconds_left,
            lane=job.lane,
            job_id=job.id,
            account=job.account_id,
            isolated=job.quarantined,
            inputs=inputs,
        )
        for index in range(job.parameters.num_images)
    ]


def object_key(claim: Claim, index: int) -> str:
    """A new object key, which no other attempt, worker or account can generate."""
    job, tail = claim.job, secrets.token_hex(8)
    return f"{job.account_id}/{job.id}/a{claim.lease.attempt}/{index}-{tail}.{job.parameters.output_format}"


def timings_of(generated: Sequence[GeneratedImage]) -> dict[str, float]:
    """The timings of a job as its row stores them, in seconds unless the name says otherwise.

    The phases are those of the slowest image; `device_seconds` is the sum over all images, `mean_step_batch`
    their mean. `steps_alone` and the like count the steps in step batches that were not full, by reason.
    """
    slowest = max(
        generated, key=lambda image: image.timings.waiting_seconds + image.timings.denoising_seconds
    )
    reasons: Counter[str] = Counter()
    for image in generated:
        reasons.update(image.not_fuller)
    return {
        "waiting_seconds": slowest.timings.waiting_seconds,
        "encoding_seconds": slowest.timings.encoding_seconds,
        "denoising_seconds": slowest.timings.denoising_seconds,
        "decoding_seconds": slowest.timings.decoding_seconds,
        "num_ticks_waited": slowest.timings.num_ticks_waited,
        "device_seconds": sum(image.timings.device_seconds for image in generated),
        "mean_step_batch": sum(image.mean_step_batch for image in generated) / len(generated),
        **{f"steps_{reason}": num_steps for reason, num_steps in sorted(reasons.items())},
    }


def _first_cause(errors: Sequence[BaseException | None]) -> BaseException:
    """The error that ended the job, rather than a cancellation that followed it."""
    found = [error for error in errors if error is not None]
    return min(found, key=lambda error: isinstance(error, Canceled))
