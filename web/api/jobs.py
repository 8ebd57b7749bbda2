"""`/v1/jobs`: submit a job, show it, wait for it, cancel it, retry it, open its images."""

import re
from collections.abc import Callable, Sequence
from functools import partial

from flask import Response, redirect, request
from flask_openapi.blueprint import APIBlueprint
from pydantic import BaseModel
from werkzeug.wrappers import Response as AnyResponse

from storage import erasure
from storage import jobs as transitions
from storage.errors import NotFound, Unavailable
from storage.job_views import Job, get, list_jobs
from storage.submissions import NewJob
from web.api.input_files import files_named, with_files
from web.api.paging import decode_cursor, page_of
from web.api.request_headers import digest_of, digest_of_meaning, idempotency_key, preferences, said_seconds
from web.api.resources import JobList, JobResource, job_resource
from web.api.schemas import JOB_ID, ImagePath, JobListQuery, JobPath, JobRequest, WaitQuery
from web.api.submission import submit
from web.auth import SECURITY, account_id, key_id, require_key
from web.front.wsgi import waiting_client
from web.problems import documented
from web.refusals import FieldError, ImageNotFound, InvalidRequest, JobIsNotFinal, quoted
from web.wiring import addresses, url_of, wired

blueprint = APIBlueprint(
    "jobs",
    __name__,
    url_prefix="/v1/jobs",
    abp_tags=[{"name": "jobs", "description": "One request for images, from acceptance to completion."}],
    abp_security=SECURITY,
    abp_responses=documented(401, 422, 500, 503),
)


@blueprint.before_request
def authenticate() -> None:
    """Check the key before anything else of the request is read."""
    require_key(wired().db)


@blueprint.post(
    "",
    summary="Submit a job",
    responses={200: JobResource, 202: JobResource, **documented(400, 410, 413, 415)},
)
def create_job(body: JobRequest) -> Response:
    """Accepts a job: `202`, or `200` with `Prefer: wait=N` if the job ends within N seconds.

    `Preference-Applied` has the seconds that were applied. It is absent if too many requests wait already.

    With an `Idempotency-Key` a repeated request returns the same job and `Idempotent-Replayed: true`.
    """
    wired().forecast.refresh()  # so that it may be ready when the job is
    key, digest = idempotency_key(), digest_of_meaning(body)

    def admit() -> NewJob:
        known, files = with_files(account_id(), body)
        return wired().admission.admit(
            known, account_id(), key_id=key_id(), idempotency_key=key, request_hash=digest, files=files
        )

    # Jobs of earlier versions were stored with a digest of the body's bytes: the same bytes still find them.
    return _accept(admit, key, digest, earlier_digest=digest_of(request.get_data()))


@blueprint.get("", summary="List jobs", responses={200: JobList})
def list_your_jobs(query: JobListQuery) -> Response:
    """Your jobs, newest first, one page at a time."""
    if query.tag is not None and query.batch_id is not None:
        raise InvalidRequest.of([FieldError("tag", "cannot be combined with batch_id", parameter=True)])
    found = list_jobs(
        wired().db,
        account_id(),
        states=query.state,
        tier=query.tier,
        lane=query.lane,
        batch_id=query.batch_id,
        tag=query.tag,
        limit=query.limit + 1,
        before=decode_cursor(query.cursor),
    )
    page, cursor = page_of(found, query.limit)
    shown = JobList(jobs=shown_jobs(account_id(), page), next_cursor=cursor)
    return _answer(shown)


@blueprint.get("/<job_id>", summary="Show a job", responses={200: JobResource, **documented(404)})
def get_job(path: JobPath, query: WaitQuery) -> Response:
    """The job now. With `?wait=N` the answer comes when the job has ended, or after N seconds.

    `Prefer: wait=N` does the same.
    """
    job = _get(path.job_id)
    if query.wait is not None:
        return _shown(_waited(job, query.wait) or job, 200)
    headers: dict[str, str] = {}
    return _shown(_waited_as_preferred(job, headers) or job, 200, headers)


@blueprint.delete(
    "/<job_id>",
    summary="Cancel a job",
    responses={200: JobResource, 202: JobResource, **documented(404, 409)},
)
def cancel_job(path: JobPath) -> Response:
    """`200` if the job is canceled, `202` if it runs and stops at its next step, `409` if it has ended."""
    _check_id(path.job_id)
    job = transitions.cancel(wired().db, account_id(), path.job_id)
    return _shown(job, 200 if job.is_terminal else 202)


@blueprint.post(
    "/<job_id>/retry",
    summary="Retry a job",
    responses={200: JobResource, 202: JobResource, **documented(404, 409)},
)
def retry_job(path: JobPath) -> Response:
    """Creates a job with the same parameters and seed, and `retry_of`. `409` until the original job ends."""
    job = _ended(path.job_id, "it cannot be retried")
    key, digest = idempotency_key(scope=f"retry {job.id}"), digest_of()
    files = files_named(job.account_id, job.parameters.file_ids)
    admit = partial(
        wired().admission.readmit,
        job,
        key_id=key_id(),
        files=files,
        idempotency_key=key,
        request_hash=digest,
    )
    return _accept(admit, key, digest)


@blueprint.get(
    "/<job_id>/images/<index>",
    summary="Open an image",
    responses={302: {"description": "Redirect to a newly signed link."}, **documented(404)},
)
def open_image(path: ImagePath) -> AnyResponse:
    """Redirects to a link that works for a few minutes. This address itself is permanent."""
    job = _get(path.job_id)
    image = next((image for image in job.images if image.index == path.index), None)
    if image is None or not image.is_there:
        raise ImageNotFound(f"job {job.id!r} is {job.state} and has no image {path.index}")
    response = redirect(addresses().signed_image(job, image, for_head=request.method == "HEAD"), 302)
    response.headers["Cache-Control"] = "no-store"
    return response


@blueprint.delete(
    "/<job_id>/images",
    summary="Delete the images of a job",
    responses={204: {"description": "They are deleted."}, **documented(404, 409)},
)
def delete_images(path: JobPath) -> Response:
    """Deletes the images of a job that has ended; the job stays.

    Links that were signed before work until the sweeper has deleted the files, usually within a minute.
    """
    job = _ended(path.job_id, "its images cannot be deleted")
    if not erasure.delete_images(wired().db, job.account_id, job.id):
        raise NotFound(f"no job {job.id!r}")
    return Response(status=204)


@blueprint.post(
    "/<job_id>/erase",
    summary="Erase a job",
    responses={204: {"description": "It is erased."}, **documented(404, 409)},
)
def erase_job(path: JobPath) -> Response:
    """Erases a job that has ended: images, prompt, events, webhooks, and input files that no other job names.

    From then on it is unknown (`404`); only its id and the instant are kept. The sums of usage and the counts
    of its batch stay.
    """
    job = _ended(path.job_id, "it cannot be erased")
    if not erasure.erase(wired().db, job.account_id, job.id):
        raise NotFound(f"no job {job.id!r}")
    return Response(status=204)


def shown_jobs(account_id: str, jobs: Sequence[Job]) -> list[JobResource]:
    """The account's jobs for clients, with why they wait and how long they take: one query for all."""
    waits, etas = wired().waits.of_jobs(account_id, jobs), wired().forecast.of_jobs(jobs)
    to = addresses()
    return [job_resource(job, waits.get(job.id), etas.get(job.id), to) for job in jobs]


def _accept(
    admit: Callable[[], NewJob], key: str | None, digest: str, *, earlier_digest: str | None = None
) -> Response:
    submitted = submit(admit, account_id(), key, digest, earlier_digest=earlier_digest)
    headers = {"Location": url_of(f"/v1/jobs/{submitted.job.id}")}
    if not submitted.is_new:
        headers["Idempotent-Replayed"] = "true"
    job = _waited_as_preferred(submitted.job, headers)
    if job is not None:
        return _shown(job, 200 if job.is_terminal else 202, headers)
    if submitted.wait is None:
        return _shown(submitted.job, 202, headers)
    return _answer(
        job_resource(submitted.job, submitted.wait, submitted.eta_seconds, addresses()), 202, headers
    )


def _waited_as_preferred(job: Job, headers: dict[str, str]) -> Job | None:
    """As `_waited`, for the seconds of the `Prefer` header; adds `Preference-Applied` to `headers`."""
    seconds = preferences(request.headers.get("Prefer")).wait_seconds
    if seconds is None:
        return None
    waited = _waited(job, seconds)
    if waited is not None:
        headers["Preference-Applied"] = f"wait={said_seconds(min(seconds, wired().max_wait_seconds))}"
    return waited


def _waited(job: Job, seconds: float) -> Job | None:
    """The job once it has ended, or after this many seconds; None if too many requests wait already."""
    wiring = wired()
    seconds = min(seconds, wiring.max_wait_seconds)
    if job.is_terminal or seconds <= 0:
        return job
    client = waiting_client(request.environ)
    with client.lent():
        has_waited = wiring.waiter.wait(job.id, seconds, client.hang_up)
    if not has_waited:
        return None
    try:
        return get(wiring.db, job.account_id, job.id)
    except Unavailable:
        return job  # the job was accepted, and the response must say so


def _get(job_id: str) -> Job:
    _check_id(job_id)
    return get(wired().db, account_id(), job_id)


def _ended(job_id: str, refusal: str) -> Job:
    job = _get(job_id)
    if not job.is_terminal:
        raise JobIsNotFinal(f"job {job.id!r} is {job.state}: {refusal} before it ends")
    return job


def _check_id(job_id: str) -> None:
    # A string that cannot be an id never reaches Postgres, and gets the answer of an unknown job.
    if not re.fullmatch(JOB_ID, job_id):
        raise NotFound(f"no job {quoted(job_id)}")


def _shown(job: Job, status: int, headers: dict[str, str] | None = None) -> Response:
    (shown,) = shown_jobs(job.account_id, [job])
    return _answer(shown, status, headers)


def _answer(shown: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(shown.model_dump_json() + "\n", status, headers, mimetype="application/json")
