"""`/jobs/{id}`: one job as a page, with forms to cancel and to retry it.

The forms carry the session's token, as the form for a job does; an API key alone is not accepted here.
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

from catalogue.parameters import FILES, PARAMETERS, entries_of, in_one_text
from catalogue.states import TERMINAL, State
from storage import jobs as transitions
from storage.errors import JobIsFinal, NotFound
from storage.job_views import Job, get
from web import session
from web.api.input_files import files_named
from web.api.jobs import shown_jobs
from web.api.parameter_fields import OWN
from web.api.request_headers import digest_of
from web.api.schemas import JOB_ID
from web.api.submission import submit
from web.auth import account_of_session, key_id
from web.pages.draw_form import DrawForm, once_of
from web.pages.html_errors import register_html_errors
from web.pages.page import STALE_FORM, front_page, refuse_cross_site
from web.refusals import quoted
from web.wiring import path_of, url_of, wired

CAN_BE_RETRIED = TERMINAL - {State.SUCCEEDED}
"""The states in which a job ended without images."""
SHOWN_ID_CHARACTERS = 17

blueprint = Blueprint("job_page", __name__)
register_html_errors(blueprint)


@blueprint.get("/jobs/<job_id>")
def show_job(job_id: str) -> Response:
    """One job: its images, its parameters, its timings, its error."""
    account_id = account_of_session(wired().db)
    if not re.fullmatch(JOB_ID, job_id):
        raise NotFound(f"no job {quoted(job_id)}")
    if account_id is None:
        return front_page(DrawForm(), None, status=401, after=f"/jobs/{job_id}")
    return _shown(get(wired().db, account_id, job_id))


@blueprint.post("/jobs/<job_id>/cancel")
def cancel_job(job_id: str) -> AnyResponse:
    """Cancel the job; if it has ended meanwhile, its page is shown."""

    def cancel(job: Job) -> str:
        with suppress(JobIsFinal):
            transitions.cancel(wired().db, job.account_id, job.id)
        return job.id

    return _act_on(job_id, cancel)


@blueprint.post("/jobs/<job_id>/retry")
def retry_job(job_id: str) -> AnyResponse:
    """Retry the job and show the new one; if it has not ended, its own page is shown."""

    def retry(job: Job) -> str:
        if not job.is_terminal:
            return job.id
        # The line break makes the key different from every key that a client of the API can send.
        key, digest = f"page retry {once_of(request.form)}\n{job.id}", digest_of()
        files = files_named(job.account_id, job.parameters.file_ids)
        admit = partial(
            wired().admission.readmit,
            job,
            key_id=key_id(),
            files=files,
            idempotency_key=key,
            request_hash=digest,
        )
        return submit(admit, job.account_id, key, digest).job.id

    return _act_on(job_id, retry)


def _act_on(job_id: str, act: Callable[[Job], str]) -> AnyResponse:
    """Act on the job for the session whose token was sent, and redirect to the job that `act` returns."""
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
    (shown,) = shown_jobs(job.account_id, [job])
    values = job.parameters.values()
    html = render_template(
        "job.html",
        job=shown,
        parameters={
            name.replace("_", " "): _text_of(name, values[name])
            for name, parameter in PARAMETERS.items()
            # The prompt is the heading of the page.
            if name != OWN and not parameter.is_required and values[name] not in (None, "", [])
        },
        own={name: _text(value) for name, value in values[OWN].items()},
        command=_command_for(job),
        live=None if job.is_terminal else path_of(f"/jobs/{job.id}"),
        refusal=refusal,
        is_canceling=job.cancel_requested_at is not None,
        can_retry=job.state in CAN_BE_RETRIED,
        once=secrets.token_hex(16),
    )
    return make_response(html, status)


def _text_of(name: str, value: object) -> str:
    if name in FILES:
        return " ".join(f"{id[:SHOWN_ID_CHARACTERS]}…" for id in entries_of(value))
    return f"{_text(in_one_text(value))} {PARAMETERS[name].unit}".rstrip()


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _command_for(job: Job) -> str:
    """A shell command that submits the same job again."""
    asked = {"model": job.model, **job.parameters.values()}
    given = {name: value for name, value in asked.items() if value not in (None, {}, [])}
    body = json.dumps(given, ensure_ascii=False)
    return (
        f'curl {shlex.quote(url_of("/v1/jobs"))} -H "Authorization: Bearer $CALOTYPE_API_KEY" \\\n'
        f'  -H "Content-Type: application/json" -H "Prefer: wait=60" \\\n  -d {shlex.quote(body)}'
    )
