"""`/jobs/{id}`: one job as a page, and the forms on it: cancel it, try it again.

The forms carry the session's token, as the form that draws does; a key alone opens nothing here.
"""

import json
import re
import secrets
import shlex
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from flask import Blueprint, Response, make_response, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from storage import jobs as transitions
from storage.errors import JobIsFinal, NotFound
from storage.job_views import Job, get
from storage.states import TERMINAL, State
from web import session
from web.api.idempotency import digest_of
from web.api.input_files import files_named
from web.api.jobs import submit
from web.api.resources import job_resource
from web.api.schemas import JOB_ID
from web.auth import account_of_session
from web.pages.draw_form import DrawForm, once_of
from web.pages.html_errors import register_html_errors
from web.pages.page import STALE_FORM, front_page
from web.pages.same_site import refuse_cross_site
from web.refusals import quoted
from web.wiring import path_of, url_of, wired

CAN_BE_TRIED_AGAIN = TERMINAL - {State.SUCCEEDED}
"""The states in which a job came to nothing."""

blueprint = Blueprint("job_page", __name__)
register_html_errors(blueprint)


@blueprint.get("/jobs/<job_id>")
def show_job(job_id: str) -> Response:
    """One job: its images, what was asked, what it took, what went wrong."""
    account_id = account_of_session(wired().db)
    if not re.fullmatch(JOB_ID, job_id):
        raise NotFound(f"no job {quoted(job_id)}")
    if account_id is None:
        return front_page(DrawForm(), None, status=401, after=f"/jobs/{job_id}")
    return _shown(get(wired().db, account_id, job_id))


@blueprint.post("/jobs/<job_id>/cancel")
def cancel_job(job_id: str) -> AnyResponse:
    """Cancel the job; one that has ended meanwhile is shown as it is."""

    def cancel(job: Job) -> str:
        with suppress(JobIsFinal):
            transitions.cancel(wired().db, job.account_id, job.id)
        return job.id

    return _act_on(job_id, cancel)


@blueprint.post("/jobs/<job_id>/retry")
def retry_job(job_id: str) -> AnyResponse:
    """The same job again, and its page; one that has not ended is shown as it is."""

    def retry(job: Job) -> str:
        if not job.is_terminal:
            return job.id
        # The line break keeps it apart from every key that a client of the API can send.
        key, digest = f"page retry {once_of(request.form)}\n{job.id}", digest_of()
        files = files_named(job.account_id, job.parameters.file_ids)
        admit = partial(wired().admission.readmit, job, files=files, idempotency_key=key, request_hash=digest)
        return submit(admit, job.account_id, key, digest)[0].id

    return _act_on(job_id, retry)


def _act_on(job_id: str, act: Callable[[Job], str]) -> AnyResponse:
    """Do it for the session whose token came along, and lead to the job that it names."""
    refuse_cross_site()
    account_id = account_of_session(wired().db)
    if not re.fullmatch(JOB_ID, job_id):
        raise NotFound(f"no job {quoted(job_id)}")
    if account_id is None:
        return front_page(DrawForm(), None, status=401, after=f"/jobs/{job_id}")
    job = get(wired().db, account_id, job_id)
    if not session.is_form_token(request.form.get(session.TOKEN_FIELD, "")):
        return _shown(job, status=403, refusal=STALE_FORM)
    return redirect(path_of(f"/jobs/{act(job)}#job"), 303)


def _shown(job: Job, *, status: int = 200, refusal: str | None = None) -> Response:
    shown = job_resource(job)
    html = render_template(
        "job.html",
        job=shown,
        command=_command_for(job),
        live=None if job.is_terminal else path_of(f"/jobs/{job.id}"),
        refusal=refusal,
        is_canceling=job.cancel_requested_at is not None,
        can_retry=job.state in CAN_BE_TRIED_AGAIN,
        once=secrets.token_hex(16),
    )
    return make_response(html, status)


def _command_for(job: Job) -> str:
    """The same job again from a shell, quoted for it."""
    asked = {"model": job.model, **job.parameters.values()}
    given = {name: value for name, value in asked.items() if value not in (None, {}, [])}
    body = json.dumps(given, ensure_ascii=False)
    return (
        f'curl {shlex.quote(url_of("/v1/jobs"))} -H "Authorization: Bearer $CALOTYPE_API_KEY" \\\n'
        f'  -H "Content-Type: application/json" -H "Prefer: wait=60" \\\n  -d {shlex.quote(body)}'
    )
