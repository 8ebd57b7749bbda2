"""`/session`: a key given once lets a browser read and draw for a while; `/session/end` takes that back."""

from flask import Blueprint, redirect
from werkzeug.wrappers import Response as AnyResponse

from web import session
from web.auth import principal_of_form
from web.pages.draw_form import DrawForm
from web.pages.html_errors import register_html_errors
from web.pages.page import front_page, next_page
from web.pages.same_site import refuse_cross_site
from web.refusals import FieldError
from web.wiring import path_of, wired

blueprint = Blueprint("session", __name__)
register_html_errors(blueprint)


@blueprint.get("/session")
def lead_home() -> AnyResponse:
    """Here a browser stands after a wrong key; asked for by itself it is the page."""
    return redirect(path_of("/"), 303)


@blueprint.post("/session")
def begin_session() -> AnyResponse:
    """Check the key; a good one becomes a cookie, a wrong one a sentence beside the field."""
    refuse_cross_site()
    after = next_page("/")
    principal = principal_of_form(wired().db)
    if principal is None:
        wrong = FieldError("api_key", "this API key is not known, or was revoked")
        return front_page(DrawForm().refused([wrong]), None, status=401, after=after)
    session.begin(wired().db, principal)
    return redirect(path_of(after), 303)


@blueprint.post("/session/end")
def end_session() -> AnyResponse:
    """End the session, in every copy of its cookie; `503` when it could not be ended.

    It asks for no token: who signed in anew in another tab must be able to sign out in this one.
    """
    refuse_cross_site()
    response = redirect(path_of("/"), 303)
    session.end(wired().db, response)
    return response
