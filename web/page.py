"""`/`: a small page without scripts that says what runs here and where to go on."""

from flask import Blueprint, render_template

from storage.errors import StorageError
from web.resources import TierResource
from web.tiers import tier_resources
from web.wiring import url_of, wired

blueprint = Blueprint("page", __name__, template_folder="templates")


@blueprint.get("/")
def show_page() -> str:
    """The models, their tiers, and whether a worker serves them; nothing that belongs to an account."""
    tiers: list[TierResource] | None
    try:
        tiers = tier_resources()
    except StorageError:
        tiers = None
    return render_template(
        "page.html", models=wired().catalogue.models, tiers=tiers, jobs_url=url_of("/v1/jobs")
    )
