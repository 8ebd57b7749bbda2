"""What clients receive: jobs, batches, tiers and models as JSON, and the links between them.

Image links are signed here, at read time; nothing here is stored.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, Field

from catalogue.parameters import PARAMETERS
from storage.batches import Batch
from storage.job_views import Job, StoredImage
from storage.states import TERMINAL, WITHOUT_IMAGE, State
from web.api.parameter_fields import as_answered, with_parameters
from web.estimates.waiting_reasons import WaitingReason
from web.estimates.waits import TierWait, Wait, waits_of_batches, waits_of_jobs
from web.wiring import url_of, wired

Links = dict[str, str]


class ImageResource(BaseModel):
    """One image; `url` works until `expires_at`, the job's link `images` for good."""

    index: int
    url: str | None
    width: int
    height: int
    sha256: str
    expires_at: datetime | None


class JobError(BaseModel):
    """Why a job failed, and whether trying again can help."""

    code: str
    retryable: bool
    detail: str


class JobWarningResource(BaseModel):
    """What was not done as asked; the images are there all the same."""

    code: str
    field: str = Field(description="The field of the request that it is about.")
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

    id: str
    state: State
    eta_seconds: float | None = Field(
        None, description="Until its images are drawn, by profiles. Null where it cannot be honest."
    )
    queue_position: int | None = Field(
        None, description="1 is next in its tier and lane. Null while it has no bell, and beyond 1001."
    )
    waiting_reason: WaitingReason | None = Field(None, description="Null unless it waits.")
    progress: float = Field(description="0 to 1.")
    attempt: int
    tier: str
    model: str
    lane: str
    images: list[ImageResource]
    error: JobError | None
    warnings: list[JobWarningResource]
    worker: str | None
    batch_id: str | None
    batch_line: int | None
    retry_of: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    timings: dict[str, float] = Field(description="Seconds by what they went for, and the company it ran in.")
    links: Links


class JobList(BaseModel):
    """One page of jobs, newest first."""

    jobs: list[JobResource]
    next_cursor: str | None


class RowCounts(BaseModel):
    """What became of the rows of a file; those that name the job of an earlier batch are not all new."""

    new: int = Field(0, description="Jobs of this batch that are no retries.")
    retried: int = Field(0, description="Jobs of this batch that try again what came to nothing.")
    already_succeeded: int = Field(0, description="Left alone: their images are there.")
    still_open: int = Field(
        0,
        description="Left alone: their jobs had not ended when the file was taken. The batch's state, "
        "counts, percent and webhook leave these jobs out; `results.csv` shows what they came to.",
    )


class BatchWarning(BaseModel):
    """What was assumed to read a file."""

    code: str
    field: str = Field(description="The field of the form that says it better; empty for none.")
    detail: str


class BatchResource(BaseModel):
    """A batch and how far it is."""

    id: str
    state: str = Field(description="running, succeeded, partially_failed, failed or canceled")
    filename: str
    read_as: str | None = Field(
        None,
        description="Delimiter and encoding of its file, as `semicolons, Windows-1252`. Null for a retry.",
    )
    warnings: list[BatchWarning] = Field([], description="What was assumed to read its file.")
    rows: RowCounts
    num_jobs: int = Field(description="The jobs that it runs itself: new and retried rows.")
    counts: dict[str, int] = Field(description="Jobs by state; every state is listed.")
    percent: float = Field(description="Of its jobs that have ended, 0 to 100.")
    waiting_reasons: list[TierWait] = Field(description="Why its queued jobs wait; one entry a tier.")
    retry_of: str | None = Field(None, description="The batch whose failed rows it runs again.")
    created_at: datetime
    finished_at: datetime | None
    links: Links


class BatchList(BaseModel):
    """One page of batches, newest first."""

    batches: list[BatchResource]
    next_cursor: str | None


class QueueDepth(BaseModel):
    """Jobs that wait in each lane."""

    interactive: int
    bulk: int


class TierResource(BaseModel):
    """A resolution class, how long its queue is, and whether a live worker serves it."""

    name: str
    model: str
    max_pixels: int
    default_width: int
    default_height: int
    queue_depth: QueueDepth
    num_live_workers: int
    can_serve: bool
    determinism: str | None = Field(description="How equal images are: the weakest over the live workers.")
    eta_seconds: float | None = Field(
        None,
        description="Of an interactive job of the default size, steps and guidance that came now. "
        "Null where it cannot be honest.",
    )


class TierList(BaseModel):
    """Every tier, small before large."""

    tiers: list[TierResource]


def job_resource(job: Job) -> JobResource:
    """A job with freshly signed links and, while it waits, why."""
    return job_resources(job.account_id, [job])[0]


def job_resources(account_id: str, jobs: Sequence[Job]) -> list[JobResource]:
    """The same of many jobs of one account; one query for all that wait."""
    waits, etas = waits_of_jobs(account_id, jobs), wired().forecast.of_jobs(jobs)
    return [_job_resource(job, waits.get(job.id), etas.get(job.id)) for job in jobs]


def _job_resource(job: Job, wait: Wait | None, eta_seconds: float | None) -> JobResource:
    return JobResource(
        **{name: getattr(job, name) for name in _SAME_IN_ROW_AND_RESOURCE},
        **job.parameters.values(),
        images=[_image(job, image) for image in job.images],
        error=_error(job),
        warnings=[JobWarningResource(**warning) for warning in job.warnings],
        eta_seconds=eta_seconds,
        timings=_timings(job),
        queue_position=wait.position if wait else None,
        waiting_reason=wait.reason if wait else None,
        links=_job_links(job),
    )


def _timings(job: Job) -> dict[str, float]:
    """The worker's, and before them how long the job was queued, all tries together."""
    if job.started_at is None:
        return job.timings
    queued_seconds = round((job.started_at - job.created_at).total_seconds(), 4)
    return {"queued_seconds": queued_seconds, **job.timings}


_MADE_HERE = {
    "images", "error", "warnings", "links", "eta_seconds", "queue_position", "waiting_reason", "timings",
}  # fmt: skip
_SAME_IN_ROW_AND_RESOURCE = [
    name for name in JobResource.model_fields if name not in _MADE_HERE and name not in PARAMETERS
]


def image_url(job_id: str, index: int) -> str:
    """The link to an image that does not rot."""
    return url_of(f"/v1/jobs/{job_id}/images/{index}")


def signed_url(job: Job, image: StoredImage, *, for_head: bool = False) -> str:
    """A link that opens the image without a key, for a while, with `GET` or with `HEAD`."""
    wiring = wired()
    return wiring.blobs.presign(
        image.object_key,
        seconds=wiring.image_url_seconds,
        filename=f"{job.id}-{image.index}.{job.parameters.output_format}",
        # The formats are named as their media types are.
        content_type=f"image/{job.parameters.output_format}",
        for_head=for_head,
    )


def _image(job: Job, image: StoredImage) -> ImageResource:
    there = image.deleted_at is None
    return ImageResource(
        index=image.index,
        url=signed_url(job, image) if there else None,
        width=image.width,
        height=image.height,
        sha256=image.sha256,
        expires_at=datetime.now(UTC) + timedelta(seconds=wired().image_url_seconds) if there else None,
    )


def _error(job: Job) -> JobError | None:
    if job.error_code is None:
        return None
    return JobError(
        code=job.error_code, retryable=bool(job.error_retryable), detail=job.error_detail or job.error_code
    )


def _job_links(job: Job) -> Links:
    here = url_of(f"/v1/jobs/{job.id}")
    links = {"self": here, "images": here + "/images/{index}"}
    if job.is_terminal:
        links["retry"] = here + "/retry"
    else:
        links["cancel"] = here
    if job.batch_id is not None:
        links["batch"] = url_of(f"/v1/batches/{job.batch_id}")
    if job.retry_of is not None:
        links["retry_of"] = url_of(f"/v1/jobs/{job.retry_of}")
    return links


def batch_resource(batch: Batch) -> BatchResource:
    """A batch with its progress and what its queued jobs wait for."""
    return batch_resources(batch.account_id, [batch])[0]


def batch_resources(account_id: str, batches: Sequence[Batch]) -> list[BatchResource]:
    """The same of many batches of one account; two queries for all that wait."""
    waits = waits_of_batches(account_id, batches)
    return [_batch_resource(batch, waits.get(batch.id, [])) for batch in batches]


def _batch_resource(batch: Batch, waits: list[TierWait]) -> BatchResource:
    here = url_of(f"/v1/batches/{batch.id}")
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
        waiting_reasons=waits,
        retry_of=batch.reading.get("retry_of"),
        created_at=batch.created_at,
        finished_at=batch.finished_at,
        links={
            "self": here,
            "jobs": url_of(f"/v1/jobs?batch_id={batch.id}"),
            "results": here + "/results.csv",
            "errors": here + "/errors.csv",
            **({"cancel": here} if batch.state == "running" else {}),
            **({"retry": here + "/retry"} if any(batch.counts.get(state) for state in WITHOUT_IMAGE) else {}),
        },
    )
