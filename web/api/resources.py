"""Jobs and batches as clients receive them.

Pure functions of rows, of the waits and estimates that the routes gathered, and of the addresses to put into
links. Image links are signed here, when a job is shown; nothing here is stored.
"""

from datetime import datetime

from pydantic import BaseModel, Field

from catalogue.accounting import Cost
from catalogue.parameters import PARAMETERS
from catalogue.states import TERMINAL, WITHOUT_IMAGE, State
from catalogue.warnings import RequestWarning
from storage.batches import Batch
from storage.job_views import Job, StoredImage
from storage.usage import in_currency
from web.api.addresses import Addresses
from web.api.parameter_fields import as_answered, with_parameters
from web.estimates.waiting_reasons import TierWait, Wait, WaitingReason

Links = dict[str, str]


class ImageResource(BaseModel):
    """One image. `url` works until `expires_at`; the job's link `images` is permanent."""

    index: int
    url: str | None
    width: int
    height: int
    sha256: str
    expires_at: datetime | None
    deleted_at: datetime | None = Field(None, description="Null unless its owner has deleted it.")
    missing_at: datetime | None = Field(
        None, description="Null unless its file was missing when this installation was restored."
    )


class CostResource(BaseModel):
    """The price of device seconds at the time when they were used."""

    amount: float
    currency: str = Field(description="ISO 4217, such as USD.")


class JobError(BaseModel):
    """Why a job failed, and whether a retry can help."""

    code: str
    retryable: bool
    detail: str


@with_parameters(
    as_answered,
    before={
        "prompt": (
            "id", "state", "eta_seconds", "queue_position", "waiting_reason", "progress", "attempt", "tier",
            "model", "lane",
        )
    },
)  # fmt: skip
class JobResource(BaseModel):
    """A job as clients see it."""

    # A new field is also a name in `catalogue.pipeline_parameters.REPORT_FIELDS`.

    id: str
    state: State
    eta_seconds: float | None = Field(
        None, description="Estimated seconds until its images are drawn. Null where no estimate is reliable."
    )
    queue_position: int | None = Field(
        None,
        description="Position in the queue of its tier and lane; 1 is next. Null for bulk jobs, before the "
        "job is dispatched, and above 1001.",
    )
    waiting_reason: WaitingReason | None = Field(None, description="Null unless the job waits.")
    progress: float = Field(description="0 to 1.")
    attempt: int
    tier: str
    model: str
    lane: str
    images: list[ImageResource]
    error: JobError | None
    warnings: list[RequestWarning]
    worker: str | None
    batch_id: str | None
    batch_line: int | None
    retry_of: str | None
    key_id: str | None = Field(description="The API key that submitted it, also through a page.")
    tag: str | None = Field(description="What it is accounted under.")
    cost: CostResource | None = Field(
        description="Of its `timings.device_seconds`. Null until it succeeds, and if its device had no price."
    )
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    timings: dict[str, float] = Field(
        description="Seconds by stage, and figures of the step batches that the job ran in."
    )
    links: Links


class JobList(BaseModel):
    """One page of jobs, newest first."""

    jobs: list[JobResource]
    next_cursor: str | None


class RowCounts(BaseModel):
    """What the rows of a file became. Rows that name a job of an earlier batch may need no new job."""

    new: int = Field(0, description="Jobs of this batch that are not retries.")
    retried: int = Field(0, description="Jobs of this batch that retry a job without images.")
    already_succeeded: int = Field(0, description="Rows without a new job: their images exist.")
    still_open: int = Field(
        0,
        description="Rows without a new job: their earlier jobs had not ended when the file was accepted. "
        "The batch's state, counts, percent and webhook do not include these jobs; `results.csv` does.",
    )


class BatchWarning(BaseModel):
    """An assumption that was made to read a file."""

    code: str
    field: str = Field(description="The form field that overrides it; empty if there is none.")
    detail: str


class BatchResource(BaseModel):
    """A batch and its progress."""

    id: str
    state: str = Field(description="running, succeeded, partially_failed, failed or canceled")
    filename: str
    read_as: str | None = Field(
        None,
        description="Delimiter and encoding of its file, as `semicolons, Windows-1252`. Null for a retry.",
    )
    warnings: list[BatchWarning] = Field([], description="Assumptions that were made to read its file.")
    rows: RowCounts
    num_jobs: int = Field(description="Jobs of this batch: new and retried rows.")
    counts: dict[str, int] = Field(description="Jobs by state; every state is listed.")
    percent: float = Field(description="Share of its jobs that have ended, 0 to 100.")
    device_seconds: float = Field(0, description="Of its jobs that have succeeded.")
    cost: CostResource | None = Field(
        None, description="Of these, in the currency of now; null if none has one."
    )
    unpriced_device_seconds: float = Field(0, description="Device seconds that `cost` does not include.")
    waiting_reasons: list[TierWait] = Field(description="Why its queued jobs wait; one entry per tier.")
    retry_of: str | None = Field(None, description="The batch whose failed rows this one retries.")
    created_at: datetime
    finished_at: datetime | None
    links: Links


class BatchList(BaseModel):
    """One page of batches, newest first."""

    batches: list[BatchResource]
    next_cursor: str | None


def job_resource(job: Job, wait: Wait | None, eta_seconds: float | None, addresses: Addresses) -> JobResource:
    """The job; `wait` is None unless it waits."""
    return JobResource(
        **{name: getattr(job, name) for name in _SAME_IN_ROW_AND_RESOURCE},
        **job.parameters.values(),
        images=[_image(job, image, addresses) for image in job.images],
        error=_error(job),
        warnings=list(job.warnings),
        eta_seconds=eta_seconds,
        timings=_timings(job),
        queue_position=wait.position if wait else None,
        waiting_reason=wait.reason if wait else None,
        cost=cost_resource(job.cost),
        links=_job_links(job, addresses),
    )


_MADE_HERE = {
    "images", "error", "warnings", "links", "eta_seconds", "queue_position", "waiting_reason", "timings",
    "cost",
}  # fmt: skip
_SAME_IN_ROW_AND_RESOURCE = [
    name for name in JobResource.model_fields if name not in _MADE_HERE and name not in PARAMETERS
]


def cost_resource(cost: Cost | None) -> CostResource | None:
    """The cost as clients see it."""
    return None if cost is None else CostResource(amount=float(cost.amount), currency=cost.currency)


def _timings(job: Job) -> dict[str, float]:
    """The worker's timings, preceded by the seconds in the queue over all attempts."""
    if job.started_at is None:
        return job.timings
    queued_seconds = round((job.started_at - job.created_at).total_seconds(), 4)
    return {"queued_seconds": queued_seconds, **job.timings}


def _image(job: Job, image: StoredImage, addresses: Addresses) -> ImageResource:
    exists = image.is_there
    return ImageResource(
        index=image.index,
        url=addresses.signed_image(job, image) if exists else None,
        width=image.width,
        height=image.height,
        sha256=image.sha256,
        expires_at=addresses.expires_at() if exists else None,
        deleted_at=image.deleted_at,
        missing_at=image.missing_at,
    )


def _error(job: Job) -> JobError | None:
    if job.error_code is None:
        return None
    return JobError(
        code=job.error_code, retryable=bool(job.error_retryable), detail=job.error_detail or job.error_code
    )


def _job_links(job: Job, addresses: Addresses) -> Links:
    here = addresses.of(f"/v1/jobs/{job.id}")
    links = {"self": here, "images": here + "/images/{index}"}
    if job.is_terminal:
        links["retry"] = here + "/retry"
    else:
        links["cancel"] = here
    if job.batch_id is not None:
        links["batch"] = addresses.of(f"/v1/batches/{job.batch_id}")
    if job.retry_of is not None:
        links["retry_of"] = addresses.of(f"/v1/jobs/{job.retry_of}")
    return links


def batch_resource(batch: Batch, waits: list[TierWait], currency: str, addresses: Addresses) -> BatchResource:
    """The batch with its cost in this currency; `waits` has an entry for each tier with queued jobs of it."""
    used = in_currency(batch.used, currency)
    here = addresses.of(f"/v1/batches/{batch.id}")
    num_ended = sum(batch.counts.get(state, 0) for state in TERMINAL)
    return BatchResource(
        id=batch.id,
        state=batch.state,
        filename=batch.filename,
        read_as=batch.reading.get("read_as"),
        warnings=[BatchWarning(**warning) for warning in batch.reading.get("warnings", [])],
        rows=RowCounts(**batch.reading.get("rows", {"new": batch.num_jobs})),
        num_jobs=batch.num_jobs,
        counts={state.value: batch.counts.get(state, 0) for state in State},
        percent=round(100 * num_ended / batch.num_jobs, 1) if batch.num_jobs else 100,
        device_seconds=round(used.device_seconds, 4),
        cost=cost_resource(used.cost),
        unpriced_device_seconds=round(used.unpriced_device_seconds, 4),
        waiting_reasons=waits,
        retry_of=batch.reading.get("retry_of"),
        created_at=batch.created_at,
        finished_at=batch.finished_at,
        links={
            "self": here,
            "jobs": addresses.of(f"/v1/jobs?batch_id={batch.id}"),
            "results": here + "/results.csv",
            "errors": here + "/errors.csv",
            **({"cancel": here} if batch.state == "running" else {}),
            **({"retry": here + "/retry"} if any(batch.counts.get(state) for state in WITHOUT_IMAGE) else {}),
        },
    )
