"""`/`, `/jobs` and `/jobs/{id}`: the pages, written on the server from what the API answers too.

A session lets them be read, and nothing more: who draws sends the key along with the form, where a
browser's password manager fills it in. So neither another site's page nor a stolen cookie can make an
account work, and no form needs a token. A page with a form never loads itself again, since that would
lose what is being typed; one that only shows does, without scripts, while something is unfinished.
"""

import json
import re
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import get_args

import structlog
from flask import Blueprint, Response, make_response, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from storage.errors import NotFound, Unavailable
from storage.job_views import get, list_jobs
from storage.receivers import list_receivers
from storage.states import TERMINAL
from storage.submissions import NewJob
from web import session
from web.auth import account_of_session, principal_of_form
from web.cursor import decode_cursor, encode_cursor
from web.draw_form import DrawForm, limits
from web.errors import RETRY_AFTER_SECONDS
from web.html_errors import register_html_errors
from web.jobs import submit
from web.refusals import FieldError, InvalidRequest, quoted
from web.resources import JobResource, job_resource, job_resources
from web.same_site import refuse_cross_site
from web.schemas import JOB_ID, JobRequest
from web.tiers import tier_resources
from web.wiring import is_https, url_of, wired

log = structlog.get_logger()

JOBS_A_PAGE = 12
_OUR_PAGES = re.compile(rf"/(jobs(/{JOB_ID[1:-1]})?)?")
_SAME_IN_REQUEST = (
    "prompt", "negative_prompt", "model", "width", "height", "num_inference_steps", "guidance_scale",
    "guidance_cutoff", "step_cache", "scheduler", "seed", "num_images", "output_format", "output_quality",
)  # fmt: skip

blueprint = Blueprint("page", __name__, template_folder="templates")
register_html_errors(blueprint)


@dataclass(frozen=True)
class JobPage:
    """One page of an account's jobs, newest first; `here` and `older` are addresses."""

    jobs: list[JobResource]
    here: str
    older: str | None

    @property
    def num_unfinished(self) -> int:
        """How many may still change."""
        return sum(job.state not in TERMINAL for job in self.jobs)


@blueprint.app_template_filter("utc")
def in_utc(instant: datetime) -> str:
    """An instant for people, to the second."""
    return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


@blueprint.get("/")
def show_page() -> Response:
    """What runs here; with a session also the form and the account's latest jobs."""
    try:
        account_id = account_of_session(wired().db)
        return front_page(_blank_form(account_id), account_id)
    except Unavailable as error:
        log.warning("page_without_database", error=type(error).__name__)
        response = make_response(render_template("page.html", tiers=None), 503)
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        return response


@blueprint.post("/")
def draw() -> AnyResponse:
    """Submit what the form says, with the key that came in it; the cookie counts for nothing here."""
    refuse_cross_site()
    wiring = wired()
    form = DrawForm.sent(request.form)
    principal = principal_of_form(wiring.db)
    if principal is None:
        wrong = FieldError("api_key", "this API key is not known, or was revoked")
        return front_page(form.refused([wrong]), None, status=401)
    key, digest = form.idempotency_key, form.digest

    def admit() -> NewJob:
        asked = form.job_request(wiring.catalogue, wiring.admission)
        return wiring.admission.admit(asked, principal.account_id, idempotency_key=key, request_hash=digest)

    try:
        job, _ = submit(admit, principal.account_id, key, digest)
    except InvalidRequest as refused:
        response: AnyResponse = front_page(form.refused(refused.errors), principal.account_id, status=422)
    else:
        response = redirect(next_page(f"/jobs/{job.id}"), 303)
    session.begin(wiring.db, principal, response, secure=is_https())
    return response


@blueprint.get("/jobs")
def show_jobs() -> Response:
    """All of the account's jobs, a page at a time."""
    account_id = account_of_session(wired().db)
    if account_id is None:
        return front_page(DrawForm(), None, status=401, after="/jobs")
    return make_response(render_template("jobs.html", page=_jobs_of(account_id, request.args.get("cursor"))))


@blueprint.get("/jobs/<job_id>")
def show_job(job_id: str) -> Response:
    """One job: its images, what was asked, what it took, what went wrong."""
    account_id = account_of_session(wired().db)
    if not re.fullmatch(JOB_ID, job_id):
        raise NotFound(f"no job {quoted(job_id)}")
    if account_id is None:
        return front_page(DrawForm(), None, status=401, after=f"/jobs/{job_id}")
    job = job_resource(get(wired().db, account_id, job_id))
    return make_response(
        render_template("job.html", job=job, command=_command_for(job), live=job.state not in TERMINAL)
    )


def front_page(form: DrawForm, account_id: str | None, *, status: int = 200, after: str = "/") -> Response:
    """`/` as this account sees it, or nobody; `after` is where a key given here leads."""
    catalogue = wired().catalogue
    html = render_template(
        "page.html",
        tiers=tier_resources(),
        catalogue=catalogue,
        limits=limits(catalogue),
        schedulers=list(dict.fromkeys(name for model in catalogue.models for name in model.schedulers)),
        output_formats=get_args(JobRequest.model_fields["output_format"].annotation),
        form=form,
        after=after,
        jobs_url=url_of("/v1/jobs"),
        page=_jobs_of(account_id, None) if account_id is not None else None,
        paused=_paused_receivers(account_id) if account_id is not None else [],
    )
    return make_response(html, status)


def next_page(otherwise: str) -> str:
    """Where the sent form wants to go: a page of ours, or `otherwise`."""
    wish = request.form.get("next", "")
    return wish if _OUR_PAGES.fullmatch(wish) and wish else otherwise


def _blank_form(account_id: str | None) -> DrawForm:
    """Empty, or filled with the parameters of the account's job that `?from=` names."""
    job_id = request.args.get("from", "")
    if account_id is None or not re.fullmatch(JOB_ID, job_id):
        return DrawForm()
    return DrawForm.of_job(get(wired().db, account_id, job_id), wired().catalogue)


def _jobs_of(account_id: str, cursor: str | None) -> JobPage:
    found = list_jobs(wired().db, account_id, limit=JOBS_A_PAGE + 1, before=decode_cursor(cursor))
    shown = found[:JOBS_A_PAGE]
    older = None
    if len(found) > JOBS_A_PAGE:
        older = f"/jobs?cursor={encode_cursor(shown[-1].created_at, shown[-1].id)}"
    here = f"/jobs?cursor={cursor}" if cursor else "/jobs"
    return JobPage(job_resources(account_id, shown), here, older)


def _paused_receivers(account_id: str) -> list[str]:
    return [each.receiver for each in list_receivers(wired().db, account_id) if each.state == "paused"]


def _command_for(job: JobResource) -> str:
    """The same job again from a shell, quoted for it."""
    asked = {name: getattr(job, name) for name in _SAME_IN_REQUEST}
    body = json.dumps({name: value for name, value in asked.items() if value is not None}, ensure_ascii=False)
    return (
        f'curl {shlex.quote(url_of("/v1/jobs"))} -H "Authorization: Bearer $CALOTYPE_API_KEY" \\\n'
        f'  -H "Content-Type: application/json" -H "Prefer: wait=60" \\\n  -d {shlex.quote(body)}'
    )
