"""`/v1/tiers` and `/v1/models`: what is served, its limits, and the length of the queues."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from flask import Response, jsonify
from flask_openapi.blueprint import APIBlueprint
from pydantic import BaseModel, Field

from catalogue.determinism import weakest
from catalogue.parameters import PRESET_PARAMETERS
from storage.dispatches import waiting
from storage.paused_tiers import Pause, paused_tiers
from storage.workers import Worker, live_workers
from web.api.parameter_fields import as_preset, with_parameters
from web.auth import SECURITY, require_key
from web.problems import documented
from web.wiring import wired

if TYPE_CHECKING:
    from catalogue.catalogue import Model, Tier


class QueueDepth(BaseModel):
    """Queued jobs in each lane."""

    interactive: int
    bulk: int


class PauseResource(BaseModel):
    """A pause of a tier by an operator: its jobs are accepted and wait."""

    reason: str
    paused_at: datetime


class TierResource(BaseModel):
    """A resolution class, the length of its queue, and whether a live worker serves it."""

    name: str
    model: str
    max_pixels: int
    default_width: int
    default_height: int
    queue_depth: QueueDepth
    num_live_workers: int
    can_serve: bool = Field(description="Whether a live worker serves it, and it is not paused.")
    paused: PauseResource | None = Field(None, description="Null unless an operator has paused the tier.")
    determinism: str | None = Field(
        description="How repeatable images are: the weakest determinism level of the live workers."
    )
    eta_seconds: float | None = Field(
        None,
        description="Estimated seconds for a new interactive job of the default size, steps and guidance. "
        "Null where no estimate is reliable.",
    )


class TierList(BaseModel):
    """Every tier, ordered by size within a model."""

    tiers: list[TierResource]


@with_parameters(as_preset, names=PRESET_PARAMETERS, before={PRESET_PARAMETERS[0]: ("name",)})
class PresetResource(BaseModel):
    """Named parameters; null means the model's default."""

    name: str


class AdapterResource(BaseModel):
    """A LoRA of the model; a request names it in `loras`."""

    name: str
    description: str


class WordResource(BaseModel):
    """A word that the model learned by textual inversion, for use in prompts."""

    word: str
    description: str


class ModelParameterResource(BaseModel):
    """A parameter that only this model has; a request gives it in `pipeline_parameters`."""

    name: str
    type: str = Field(description="int, float, bool, string or choice")
    default: bool | int | float | str | None = Field(description="Null: the pipeline's own default.")
    min: int | float | None = Field(description="The smallest number, or the shortest string in characters.")
    max: int | float | None = Field(description="The largest number, or the longest string in characters.")
    choices: list[str]
    unit: str
    description: str


class ModelResource(BaseModel):
    """A model and its limits."""

    name: str
    default: bool
    schedulers: list[str] = Field(description="The first is the default.")
    default_num_inference_steps: int
    max_num_inference_steps: int
    default_guidance_scale: float
    max_guidance_scale: float
    max_step_cache: int = Field(description="1 if the model has no step cache.")
    presets: list[PresetResource] = Field(description="Values for `preset` of a request.")
    tasks: list[str] = Field(
        description="What the model can do: `text-to-image` needs only a prompt, the others input images."
    )
    loras: list[AdapterResource] = Field(description="Names for `loras` of a request.")
    embeddings: list[WordResource] = Field(description="Words that the model learned by textual inversion.")
    parameters: list[ModelParameterResource] = Field(
        description="Names and limits for `pipeline_parameters` of a request."
    )
    min_side: int
    max_side: int
    side_multiple: int
    max_pixels: int
    max_prompt_characters: int
    tiers: list[str]


class ModelList(BaseModel):
    """Every model."""

    models: list[ModelResource]


blueprint = APIBlueprint(
    "tiers",
    __name__,
    url_prefix="/v1",
    abp_tags=[{"name": "catalogue", "description": "The models and tiers that are served."}],
    abp_security=SECURITY,
    abp_responses=documented(401, 422, 500, 503),
)


@blueprint.before_request
def authenticate() -> None:
    """Check the key before anything else of the request is read."""
    require_key(wired().db)


@blueprint.get("/tiers", summary="List tiers", responses={200: TierList})
def list_tiers() -> Response:
    """Every tier with its limits, its queue, and whether a live worker serves it."""
    return jsonify(TierList(tiers=shown_tiers()).model_dump(mode="json"))


@blueprint.get("/models", summary="List models", responses={200: ModelList})
def list_models() -> Response:
    """Every model with its limits, schedulers and tiers."""
    catalogue = wired().catalogue
    models = [
        model_resource(model, default=model.name == catalogue.default_model) for model in catalogue.models
    ]
    return jsonify(ModelList(models=models).model_dump(mode="json"))


def shown_tiers() -> list[TierResource]:
    """The tiers as they are now, for clients."""
    wiring = wired()
    depth = waiting(wiring.db)
    workers = live_workers(wiring.db, wiring.worker_alive_seconds)
    pauses = paused_tiers(wiring.db)
    etas = wiring.forecast.of_tiers()
    return [
        tier_resource(
            tier,
            QueueDepth(
                interactive=depth.get((tier.name, "interactive"), 0), bulk=depth.get((tier.name, "bulk"), 0)
            ),
            [worker for worker in workers if tier.name in worker.tiers],
            etas.get(tier.name),
            pauses.get(tier.name),
        )
        for tier in wiring.catalogue.tiers
    ]


def tier_resource(
    tier: "Tier",
    depth: QueueDepth,
    workers: Sequence[Worker],
    eta_seconds: float | None,
    pause: Pause | None,
) -> TierResource:
    """The tier; `workers` are the live ones that serve it."""
    return TierResource(
        name=tier.name,
        model=tier.model,
        max_pixels=tier.max_pixels,
        default_width=tier.default_width,
        default_height=tier.default_height,
        queue_depth=depth,
        num_live_workers=len(workers),
        can_serve=bool(workers) and pause is None,
        paused=None if pause is None else PauseResource(reason=pause.reason, paused_at=pause.paused_at),
        determinism=weakest(worker.determinism for worker in workers) if workers else None,
        eta_seconds=eta_seconds,
    )


def model_resource(model: "Model", *, default: bool) -> ModelResource:
    """The model as the catalogue declares it."""
    made_here = {"default", "tiers", "schedulers", "presets", "parameters", "tasks", "loras", "embeddings"}
    same = ModelResource.model_fields.keys() - made_here
    return ModelResource(
        **{name: getattr(model, name) for name in same},
        default=default,
        schedulers=list(model.schedulers),
        presets=[PresetResource(**preset.model_dump()) for preset in model.presets],
        tasks=list(model.tasks),
        loras=[AdapterResource(name=lora.name, description=lora.description) for lora in model.adapters],
        embeddings=[WordResource(word=one.word, description=one.description) for one in model.embeddings],
        parameters=[ModelParameterResource(**parameter.model_dump()) for parameter in model.parameters],
        tiers=[tier.name for tier in model.tiers],
    )
