"""`/`, `/jobs` and `/session`: the form for a job, the account's jobs, signing in and out. Rendered here.

A session lets pages be read and forms be sent. Each form carries a token of its session (`web.session`), so
that no page of another site can submit one. Without a session the form takes an API key and starts one. A
page with a form never reloads itself, since that would lose what is being typed; a page that only shows jobs
reloads without scripts while a job is unfinished.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode, urlsplit

import structlog
from flask import Blueprint, Response, make_response, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from catalogue.accounting import amount_text
from catalogue.states import TERMINAL
from storage.errors import Unavailable
from storage.job_views import get, list_jobs
from storage.receivers import list_receivers
from storage.submissions import NewJob
from web import session
from web.api.input_files import files_named
from web.api.jobs import shown_jobs
from web.api.paging import decode_cursor, page_of
from web.api.resources import JobResource
from web.api.schemas import JOB_ID
from web.api.submission import submit
from web.api.tiers import shown_tiers
from web.auth import account_of_session, principal_of_form, principal_of_session
from web.pages.draw_form import DrawForm, fields_of
from web.pages.html_errors import register_html_errors
from web.problems import RETRY_AFTER_SECONDS
from web.refusals import CrossSite, FieldError, InvalidRequest
from web.wiring import path_of, url_of, wired

log = structlog.get_logger()

JOBS_A_PAGE = 12
_OUR_PAGES = re.compile(rf"/(jobs(/{JOB_ID[1:-1]})?)?")
UNKNOWN_KEY = "this API key is unknown or was revoked"
STALE_FORM = (
    "this form belongs to an earlier session: you have signed in again since. Nothing was submitted. The "
    "form now belongs to the current session: check it and send it again"
)

blueprint = Blueprint("page", __name__)
register_html_errors(blueprint)


@dataclass(frozen=True)
class JobPage:
    """One page of an account's jobs, newest first; `here` and `older` are addresses.

    `drawn` is the job that the form has just created.
    """

    jobs: list[JobResource]
    here: str
    older: str | None
    drawn: str | None

    @property
    def num_unfinished(self) -> int:
        """The number of jobs that may still change."""
        return sum(job.state not in TERMINAL for job in self.jobs)


blueprint.add_app_template_filter(amount_text)


@blueprint.app_template_filter("utc")
def in_utc(instant: datetime) -> str:
    """An instant as text, to the second."""
    return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


@blueprint.get("/")
def show_page() -> Response:
    """The tiers that are served; with a session also the form and the account's latest jobs."""
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
    """Submit the form's job for the account of the session, or of the API key in the form."""
    refuse_cross_site()
    wiring = wired()
    form = DrawForm.sent(request.form)
    by_key = bool(request.form.get("api_key", "").strip())
    principal = principal_of_form(wiring.db) if by_key else principal_of_session(wiring.db)
    if principal is None:
        missing = FieldError("api_key", _why_unauthenticated(by_key))
        return front_page(form.refused([missing]), None, status=401)
    if not by_key and not session.is_form_token(request.form.get(session.TOKEN_FIELD, "")):
        return front_page(form.refused([FieldError("", STALE_FORM)]), principal.account_id, status=403)
    key, digest = form.idempotency_key, form.digest

    def admit() -> NewJob:
        files = files_named(principal.account_id, form.file_ids)
        asked = form.job_request(wiring.catalogue, wiring.admission, files)
        return wiring.admission.admit(
            asked,
            principal.account_id,
            key_id=principal.key_id,
            idempotency_key=key,
            request_hash=digest,
            files=files,
        )

    refused: InvalidRequest | None = None
    try:
        job, *_ = submit(admit, principal.account_id, key, digest)
    except InvalidRequest as error:
        refused = error
    if by_key:
        session.begin(wiring.db, principal)
    if refused is not None:
        return front_page(form.refused(refused.errors), principal.account_id, status=422)
    # The fragment scrolls to the new job, wherever it is on the page.
    if next_page("") == "/":
        return redirect(path_of(f"/?drawn={job.id}#{job.id}"), 303)
    return redirect(path_of(f"/jobs/{job.id}#job"), 303)


def _why_unauthenticated(by_key: bool) -> str:
    if by_key:
        return UNKNOWN_KEY
    if session.COOKIE in request.cookies:
        return "the session has ended: enter the key again; what you typed is kept"
    return "an API key is required; what you typed is kept"


@blueprint.get("/jobs")
def show_jobs() -> Response:
    """All of the account's jobs, one page at a time."""
    account_id = account_of_session(wired().db)
    if account_id is None:
        return front_page(DrawForm(), None, status=401, after="/jobs")
    return make_response(render_template("jobs.html", page=_jobs_of(account_id, request.args.get("cursor"))))


@blueprint.get("/session")
def lead_home() -> AnyResponse:
    """Redirect to `/`: a browser whose key was refused is at this address, and may reload it."""
    return redirect(path_of("/"), 303)


@blueprint.post("/session")
def begin_session() -> AnyResponse:
    """Check the key and set a session cookie, or show beside the field that the key is wrong."""
    refuse_cross_site()
    after = next_page("/")
    principal = principal_of_form(wired().db)
    if principal is None:
        wrong = FieldError("api_key", UNKNOWN_KEY)
        return front_page(DrawForm().refused([wrong]), None, status=401, after=after)
    session.begin(wired().db, principal)
    return redirect(path_of(after), 303)


@blueprint.post("/session/end")
def end_session() -> AnyResponse:
    """End the session, in every copy of its cookie; `503` if it could not be ended.

    No token is required: after signing in again in another tab, a user must be able to sign out in this one.
    """
    refuse_cross_site()
    response = redirect(path_of("/"), 303)
    session.end(wired().db, response)
    return response


def front_page(form: DrawForm, account_id: str | None, *, status: int = 200, after: str = "/") -> Response:
    """`/` for this account, or for a visitor (None); `after` is the page that signing in leads to."""
    catalogue = wired().catalogue
    html = render_template(
        "page.html",
        tiers=shown_tiers(),
        catalogue=catalogue,
        fields=fields_of(catalogue),
        form=form,
        after=after,
        jobs_url=url_of("/v1/jobs"),
        page=_jobs_of(account_id, None) if account_id is not None else None,
        paused=_paused_receivers(account_id) if account_id is not None else [],
    )
    return make_response(html, status)


def next_page(otherwise: str) -> str:
    """The path that the form names as the next page; `otherwise` if that is not a page of ours."""
    wish = request.form.get("next", "")
    return wish if _OUR_PAGES.fullmatch(wish) and wish else otherwise


def refuse_cross_site() -> None:
    """Raise `CrossSite` if a page of another site sent the form; every route that accepts a form calls this.

    `Sec-Fetch-Site` decides where browsers send it (https, and loopback); elsewhere `Origin` must be ours. A
    request with neither does not come from a browser, so it has no cookie that a browser added by itself.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        # "none": the user started the request, for example by reloading the page.
        if site in ("same-origin", "none"):
            return
    else:
        origin = request.headers.get("Origin")
        ours = {request.host, urlsplit(url_of("/")).netloc}
        if origin is None or _host(origin) in ours:
            return
    raise CrossSite("this form was sent from a page of another site; open it here and send it again")


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # for example "http://[", which no browser sends
        return None


def _blank_form(account_id: str | None) -> DrawForm:
    """Empty, or filled with the parameters of the account's job that `?from=` names."""
    job_id = request.args.get("from", "")
    if account_id is None or not re.fullmatch(JOB_ID, job_id):
        return DrawForm()
    return DrawForm.of_job(get(wired().db, account_id, job_id), wired().catalogue)


def _jobs_of(account_id: str, cursor: str | None) -> JobPage:
    found = list_jobs(wired().db, account_id, limit=JOBS_A_PAGE + 1, before=decode_cursor(cursor))
    shown, next_cursor = page_of(found, JOBS_A_PAGE)
    older = None if next_cursor is None else path_of(f"/jobs?cursor={next_cursor}")
    drawn = request.args.get("drawn", "")
    asked = {"cursor": cursor, "drawn": drawn if re.fullmatch(JOB_ID, drawn) else None}
    query = urlencode({name: value for name, value in asked.items() if value})
    here = path_of("/jobs") + (f"?{query}" if query else "")
    return JobPage(shown_jobs(account_id, shown), here, older, asked["drawn"])


def _paused_receivers(account_id: str) -> list[str]:
    return [each.receiver for each in list_receivers(wired().db, account_id) if each.state == "paused"]
