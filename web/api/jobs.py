"""`/v1/jobs`: accept a job, show it, wait for it, cancel it, try it again, lead to its images."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
from flask import Response, jsonify, redirect, request
from flask_openapi.blueprint import APIBlueprint
from werkzeug.wrappers import Response as AnyResponse

from storage import dispatches
from storage import jobs as transitions
from storage.errors import IdempotencyMismatch, NotFound, StorageError, Unavailable
from storage.job_views import Job, get, list_jobs
from storage.submissions import NewJob, create, made_before
from web.api.cursor import decode_cursor, encode_cursor
from web.api.idempotency import digest_of, digest_of_meaning, idempotency_key
from web.api.input_files import files_named, with_files
from web.api.preference import preferences, said_seconds
from web.api.resources import JobList, JobResource, job_resource, job_resources, signed_url
from web.api.schemas import JOB_ID, ImagePath, JobListQuery, JobPath, JobRequest, WaitQuery
from web.api.strict import strict_errors
from web.auth import SECURITY, account_id, require_key
from web.errors import documented
from web.front.wsgi import waiting_client
from web.refusals import ImageNotFound, InvalidRequest, JobIsNotFinal, NotServed, quoted
from web.wiring import url_of, wired

log = structlog.get_logger()

blueprint = APIBlueprint(
    "jobs",
    __name__,
    url_prefix="/v1/jobs",
    abp_tags=[{"name": "jobs", "description": "One request for images, from acceptance to its end."}],
    abp_security=SECURITY,
    abp_responses=documented(401, 422, 500, 503),
)


@blueprint.before_request
def authenticate() -> None:
    """A key first; the rest of the request is read afterwards."""
    require_key(wired().db)


@blueprint.post(
    "", summary="Submit a job", responses={200: JobResource, 202: JobResource, **documented(400, 413, 415)}
)
def create_job(body: JobRequest) -> Response:
    """Accepts a job: `202`, or with `Prefer: wait=N` the finished job (`200`) if it ends in time.

    `Preference-Applied` says how long it would have waited, and is left out where it could not wait.

    With an `Idempotency-Key` the same request again gives the same job, marked `Idempotent-Replayed: true`.
    """
    key, digest = idempotency_key(), digest_of_meaning(body)

    def admit() -> NewJob:
        known, files = with_files(account_id(), body)
        return wired().admission.admit(
            known, account_id(), idempotency_key=key, request_hash=digest, files=files
        )

    # Of jobs that were made when the digest was one of the body's bytes: the same bytes still find them.
    return _accept(admit, key, digest, earlier_digest=digest_of(request.get_data()))


@blueprint.get("", summary="List jobs", responses={200: JobList})
def list_your_jobs(query: JobListQuery) -> Response:
    """Your jobs, newest first, a page at a time."""
    found = list_jobs(
        wired().db,
        account_id(),
        states=query.state,
        tier=query.tier,
        lane=query.lane,
        batch_id=query.batch_id,
        limit=query.limit + 1,
        before=decode_cursor(query.cursor),
    )
    page = found[: query.limit]
    more = len(found) > query.limit
    cursor = encode_cursor(page[-1].created_at, page[-1].id) if more else None
    shown = JobList(jobs=job_resources(account_id(), page), next_cursor=cursor)
    return jsonify(shown.model_dump(mode="json"))


@blueprint.get("/<job_id>", summary="Show a job", responses={200: JobResource, **documented(404)})
def get_job(path: JobPath, query: WaitQuery) -> Response:
    """The job now, or with `?wait=N` as soon as it has ended, after N seconds at the latest.

    `Prefer: wait=N` asks for the same.
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
    """`200` when it is canceled, `202` when it runs and will be at its next step; `409` once it has ended."""
    _check_id(path.job_id)
    job = transitions.cancel(wired().db, account_id(), path.job_id)
    return _shown(job, 200 if job.is_terminal else 202)


@blueprint.post(
    "/<job_id>/retry",
    summary="Try a job again",
    responses={200: JobResource, 202: JobResource, **documented(404, 409)},
)
def retry_job(path: JobPath) -> Response:
    """A new job with the same parameters and seed, and `retry_of`; `409` while the old one has not ended."""
    job = _get(path.job_id)
    if not job.is_terminal:
        raise JobIsNotFinal(f"job {job.id!r} is {job.state} and cannot be tried again yet")
    key, digest = idempotency_key(scope=f"retry {job.id}"), digest_of()
    files = files_named(job.account_id, job.parameters.file_ids)
    admit = partial(wired().admission.readmit, job, files=files, idempotency_key=key, request_hash=digest)
    return _accept(admit, key, digest)


@blueprint.get(
    "/<job_id>/images/<index>",
    summary="Open an image",
    responses={302: {"description": "A freshly signed link."}, **documented(404)},
)
def open_image(path: ImagePath) -> AnyResponse:
    """Redirects to a link that works for a few minutes; this address itself does not rot."""
    job = _get(path.job_id)
    image = next((image for image in job.images if image.index == path.index), None)
    if image is None or image.deleted_at is not None:
        raise ImageNotFound(f"job {job.id!r} is {job.state} and has no image {path.index}")
    response = redirect(signed_url(job, image, for_head=request.method == "HEAD"), 302)
    response.headers["Cache-Control"] = "no-store"
    return response


def submit(
    admit: Callable[[], NewJob],
    account: str,
    key: str | None,
    digest: str,
    *,
    earlier_digest: str | None = None,
) -> tuple[Job, bool]:
    """Commit first, ring afterwards; a bell that stays silent is the sweeper's, never the client's.

    `(job, False)` when its idempotency key made it before: what was accepted once is shown, whatever would
    be refused by now. Else raises the refusal of `admit`, or `InvalidRequest`. `earlier_digest` is what an
    earlier version kept of the same request.
    """
    try:
        return _submit(admit, account, key, digest)
    except IdempotencyMismatch:
        earlier = None if earlier_digest is None else made_before(wired().db, account, key, earlier_digest)
        if earlier is None:
            raise
        return earlier, False


def _submit(admit: Callable[[], NewJob], account: str, key: str | None, digest: str) -> tuple[Job, bool]:
    wiring = wired()
    try:
        new = admit()
        if errors := strict_errors([new]):
            raise InvalidRequest.of(errors)
    except (InvalidRequest, NotServed):
        earlier = made_before(wiring.db, account, key, digest)
        if earlier is None:
            raise
        return earlier, False
    job, created = create(wiring.db, new, redispatch_seconds=wiring.redispatch_seconds)
    if created:
        wiring.metrics.jobs_accepted.labels(job.tier, job.lane).inc()
        if job.lane == "interactive":
            _dispatch(job)
    return job, created


def _accept(
    admit: Callable[[], NewJob], key: str | None, digest: str, *, earlier_digest: str | None = None
) -> Response:
    job, created = submit(admit, account_id(), key, digest, earlier_digest=earlier_digest)
    headers = {"Location": url_of(f"/v1/jobs/{job.id}")}
    if not created:
        headers["Idempotent-Replayed"] = "true"
    waited = _waited_as_preferred(job, headers)
    job = waited or job
    return _shown(job, 200 if waited is not None and job.is_terminal else 202, headers)


def _dispatch(job: Job) -> None:
    db = wired().db
    try:
        dispatch = dispatches.of_new_job(db, job.id, account_id=job.account_id)
        if dispatch is not None and not wired().dispatcher.dispatch([dispatch]):
            # The row says the truth, and the sweeper rings as soon as it can.
            dispatches.put_back(db, job.id, account_id=job.account_id)
    except StorageError as error:
        log.warning("dispatch_not_recorded", job_id=job.id, error=type(error).__name__)


def _waited_as_preferred(job: Job, headers: dict[str, str]) -> Job | None:
    """As `_waited`, for as long as the client's `Prefer` says; notes in `headers` what was applied."""
    seconds = preferences(request.headers.get("Prefer")).wait_seconds
    if seconds is None:
        return None
    waited = _waited(job, seconds)
    if waited is not None:
        headers["Preference-Applied"] = f"wait={said_seconds(min(seconds, wired().max_wait_seconds))}"
    return waited


def _waited(job: Job, seconds: float) -> Job | None:
    """The job as soon as it has ended, or after these seconds; nothing where too many wait already."""
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
        return job  # it was accepted, and that is what the answer must say


def _get(job_id: str) -> Job:
    _check_id(job_id)
    return get(wired().db, account_id(), job_id)


def _check_id(job_id: str) -> None:
    # What cannot be an id never reaches Postgres, and looks like a job that is not there.
    if not re.fullmatch(JOB_ID, job_id):
        raise NotFound(f"no job {quoted(job_id)}")


def _shown(job: Job, status: int, headers: dict[str, str] | None = None) -> Response:
    body: dict[str, Any] = job_resource(job).model_dump(mode="json")
    response = jsonify(body)
    response.status_code = status
    response.headers.update(headers or {})
    return response
