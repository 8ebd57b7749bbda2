"""The body of a webhook: its type, the time of the event, and the job or batch as the API shows it.

It is built for every attempt from rows that no longer change. It leaves out prompts, which can be long and
which the receiver can fetch, and links that work without a key or expire.
"""

import json
from datetime import UTC, datetime
from typing import Any

from catalogue.parameters import PARAMETERS, PRIVATE
from catalogue.states import State
from storage import batches, job_views
from storage.batches import Batch
from storage.database import Database
from storage.deliveries import DeliveryClaim
from storage.job_views import Job

_OF_JOB = ("id", "state", "tier", "model", "lane")
_PARAMETERS = tuple(name for name in PARAMETERS if name not in PRIVATE)
_LIFE_OF_JOB = (
    "batch_id", "batch_line", "retry_of", "attempt", "created_at", "started_at", "finished_at",
)  # fmt: skip
_OF_BATCH = ("id", "state", "filename", "num_jobs", "created_at", "finished_at")


def payload_of(db: Database, claimed: DeliveryClaim, public_url: str) -> bytes:
    """The body of this delivery as JSON in UTF-8. Without a `public_url` its links are paths."""
    root = public_url.rstrip("/")
    if claimed.batch_id is not None:
        batch = batches.get(db, claimed.account_id, claimed.batch_id, with_reading=False)
        happened_at, data = batch.finished_at, _batch(batch, f"{root}/v1/batches/{batch.id}")
    else:
        job = job_views.get(db, claimed.account_id, claimed.job_id or "", with_prompts=False)
        happened_at, data = job.finished_at, _job(job, f"{root}/v1/jobs/{job.id}")
    message = {"type": claimed.event, "timestamp": happened_at, "data": data}
    return json.dumps(message, default=_as_json, ensure_ascii=False, separators=(",", ":")).encode()


def _job(job: Job, here: str) -> dict[str, Any]:
    error = None
    if job.error_code is not None:
        error = {"code": job.error_code, "retryable": job.error_retryable, "detail": job.error_detail}
    images = [
        {
            "index": image.index,
            "url": f"{here}/images/{image.index}",
            "width": image.width,
            "height": image.height,
            "sha256": image.sha256,
        }
        for image in job.images
        if image.is_there
    ]
    same = {
        **{name: getattr(job, name) for name in _OF_JOB},
        **{name: getattr(job.parameters, name) for name in _PARAMETERS},
        **{name: getattr(job, name) for name in _LIFE_OF_JOB},
    }
    # Without the detail, which quotes the prompt if that was truncated.
    warnings = [{"code": warning.code, "field": warning.field} for warning in job.warnings]
    return {**same, "warnings": warnings, "images": images, "error": error, "links": {"self": here}}


def _batch(batch: Batch, here: str) -> dict[str, Any]:
    same = {name: getattr(batch, name) for name in _OF_BATCH}
    counts = {state.value: batch.counts.get(state, 0) for state in State}
    links = {"self": here, "results": f"{here}/results.csv", "errors": f"{here}/errors.csv"}
    return {**same, "counts": counts, "links": links}


def _as_json(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    raise TypeError(f"a webhook cannot contain a {type(value).__name__}")
