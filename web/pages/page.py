"""`/` and `/jobs`: the pages, written on the server from what the API answers too.

A session lets them be read, and draws: its forms carry a token that belongs to it (`web.session`), so that no
other site's page can make an account work. Without a session the form takes the key and begins one. A page
with a form never loads itself again, since that would lose what is being typed; one that only shows does,
without scripts, while something is unfinished.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

import structlog
from flask import Blueprint, Response, make_response, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from catalogue.parameters import OUTPUT_FORMATS
from storage.errors import Unavailable
from storage.job_views import get, list_jobs
from storage.receivers import list_receivers
from storage.states import TERMINAL
from storage.submissions import NewJob
from web import session
from web.api.cursor import decode_cursor, encode_cursor
from web.api.input_files import files_named
from web.api.jobs import submit
from web.api.resources import JobResource, job_resources
from web.api.schemas import JOB_ID
from web.api.tiers import tier_resources
from web.auth import account_of_session, principal_of_form, principal_of_session
from web.errors import RETRY_AFTER_SECONDS
from web.pages.draw_form import DrawForm, limits, other_fields
from web.pages.html_errors import register_html_errors
from web.pages.same_site import refuse_cross_site
from web.refusals import FieldError, InvalidRequest
from web.wiring import path_of, url_of, wired

log = structlog.get_logger()

JOBS_A_PAGE = 12
_OUR_PAGES = re.compile(rf"/(jobs(/{JOB_ID[1:-1]})?)?")
STALE_FORM = (
    "this form belongs to another session, since you have signed in again meanwhile. Nothing was done; the "
    "form now belongs to this session: look it through and send it again"
)

blueprint = Blueprint("page", __name__)
register_html_errors(blueprint)


@dataclass(frozen=True)
class JobPage:
    """One page of an account's jobs, newest first; `here` and `older` are addresses.

    `drawn` is the job that the reader's form has just made.
    """

    jobs: list[JobResource]
    here: str
    older: str | None
    drawn: str | None

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
    """Submit what the form says, for the session whose token or the account whose key came in it."""
    refuse_cross_site()
    wiring = wired()
    form = DrawForm.sent(request.form)
    by_key = bool(request.form.get("api_key", "").strip())
    principal = principal_of_form(wiring.db) if by_key else principal_of_session(wiring.db)
    if principal is None:
        return front_page(form.refused([FieldError("api_key", _why_nobody(by_key))]), None, status=401)
    if not by_key and not session.is_form_token(request.form.get(session.TOKEN_FIELD, "")):
        return front_page(form.refused([FieldError("", STALE_FORM)]), principal.account_id, status=403)
    key, digest = form.idempotency_key, form.digest

    def admit() -> NewJob:
        files = files_named(principal.account_id, form.file_ids)
        asked = form.job_request(wiring.catalogue, wiring.admission, files)
        return wiring.admission.admit(
            asked, principal.account_id, idempotency_key=key, request_hash=digest, files=files
        )

    refused: InvalidRequest | None = None
    try:
        job, _ = submit(admit, principal.account_id, key, digest)
    except InvalidRequest as error:
        refused = error
    if by_key:
        session.begin(wiring.db, principal)
    if refused is not None:
        return front_page(form.refused(refused.errors), principal.account_id, status=422)
    # Where the answer begins: at the new job, wherever that is on the page.
    if next_page("") == "/":
        return redirect(path_of(f"/?drawn={job.id}#{job.id}"), 303)
    return redirect(path_of(f"/jobs/{job.id}#job"), 303)


def _why_nobody(by_key: bool) -> str:
    if by_key:
        return "this API key is not known, or was revoked"
    if session.COOKIE in request.cookies:
        return "the session is over: give the key again; what you typed is kept"
    return "an API key is required; what you typed is kept"


@blueprint.get("/jobs")
def show_jobs() -> Response:
    """All of the account's jobs, a page at a time."""
    account_id = account_of_session(wired().db)
    if account_id is None:
        return front_page(DrawForm(), None, status=401, after="/jobs")
    return make_response(render_template("jobs.html", page=_jobs_of(account_id, request.args.get("cursor"))))


def front_page(form: DrawForm, account_id: str | None, *, status: int = 200, after: str = "/") -> Response:
    """`/` as this account sees it, or nobody; `after` is where a key given here leads."""
    catalogue = wired().catalogue
    html = render_template(
        "page.html",
        tiers=tier_resources(),
        catalogue=catalogue,
        limits=limits(catalogue),
        other_fields=other_fields(catalogue),
        schedulers=list(dict.fromkeys(name for model in catalogue.models for name in model.schedulers)),
        output_formats=OUTPUT_FORMATS,
        form=form,
        after=after,
        jobs_url=url_of("/v1/jobs"),
        page=_jobs_of(account_id, None) if account_id is not None else None,
        paused=_paused_receivers(account_id) if account_id is not None else [],
    )
    return make_response(html, status)


def next_page(otherwise: str) -> str:
    """Where the sent form wants to go, without our prefix: a page of ours, or `otherwise`."""
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
        older = path_of(f"/jobs?cursor={encode_cursor(shown[-1].created_at, shown[-1].id)}")
    drawn = request.args.get("drawn", "")
    asked = {"cursor": cursor, "drawn": drawn if re.fullmatch(JOB_ID, drawn) else None}
    query = urlencode({name: value for name, value in asked.items() if value})
    here = path_of("/jobs") + (f"?{query}" if query else "")
    return JobPage(job_resources(account_id, shown), here, older, asked["drawn"])


def _paused_receivers(account_id: str) -> list[str]:
    return [each.receiver for each in list_receivers(wired().db, account_id) if each.state == "paused"]
