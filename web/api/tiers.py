"""`/v1/tiers` and `/v1/models`: what is served, within which limits, how long the queues are."""

from flask import Response, jsonify
from flask_openapi.blueprint import APIBlueprint

from storage.dispatches import waiting
from storage.workers import Worker, live_workers
from web.api.model_resource import ModelList, model_resource
from web.api.resources import QueueDepth, TierList, TierResource
from web.auth import SECURITY, require_key
from web.errors import documented
from web.estimates.determinism import DETERMINISM_LEVELS
from web.wiring import wired

blueprint = APIBlueprint(
    "tiers",
    __name__,
    url_prefix="/v1",
    abp_tags=[{"name": "catalogue", "description": "What is served here."}],
    abp_security=SECURITY,
    abp_responses=documented(401, 422, 500, 503),
)


@blueprint.before_request
def authenticate() -> None:
    """A key first; the rest of the request is read afterwards."""
    require_key(wired().db)


@blueprint.get("/tiers", summary="List tiers", responses={200: TierList})
def list_tiers() -> Response:
    """Every tier: its limits, its queue, and whether a live worker serves it."""
    return jsonify(TierList(tiers=tier_resources()).model_dump(mode="json"))


@blueprint.get("/models", summary="List models", responses={200: ModelList})
def list_models() -> Response:
    """Every model: its limits, schedulers and tiers."""
    catalogue = wired().catalogue
    models = [
        model_resource(model, default=model.name == catalogue.default_model) for model in catalogue.models
    ]
    return jsonify(ModelList(models=models).model_dump(mode="json"))


def tier_resources() -> list[TierResource]:
    """The tiers as they are now."""
    wiring = wired()
    depth = waiting(wiring.db)
    workers = live_workers(wiring.db, wiring.worker_alive_seconds)
    etas = wiring.forecast.of_tiers()
    found = []
    for tier in wiring.catalogue.tiers:
        serving = [worker for worker in workers if tier.name in worker.tiers]
        queue = QueueDepth(
            interactive=depth.get((tier.name, "interactive"), 0), bulk=depth.get((tier.name, "bulk"), 0)
        )
        found.append(
            TierResource(
                name=tier.name,
                model=tier.model,
                max_pixels=tier.max_pixels,
                default_width=tier.default_width,
                default_height=tier.default_height,
                queue_depth=queue,
                num_live_workers=len(serving),
                can_serve=bool(serving),
                determinism=weakest_determinism(serving),
                eta_seconds=etas.get(tier.name),
            )
        )
    return found


def weakest_determinism(workers: list[Worker]) -> str | None:
    """What can be said of every image, whichever of these workers draws it."""
    determinism_levels = [worker.determinism for worker in workers]
    return min(
        determinism_levels,
        key=lambda determinism: (
            DETERMINISM_LEVELS.index(determinism) if determinism in DETERMINISM_LEVELS else -1
        ),
        default=None,
    )
