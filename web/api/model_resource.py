"""A model as clients see it: its limits, its schedulers and its presets, out of the catalogue.

It knows neither rows nor workers; what is live is `web.api.tiers`'.
"""

from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from web.api.parameter_fields import LoraField

if TYPE_CHECKING:
    from catalogue.catalogue import Model


class PresetResource(BaseModel):
    """Parameters under a name; null is the model's default."""

    name: str
    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_cutoff: float | None
    step_cache: int | None
    scheduler: str | None
    strength: float | None
    loras: list[LoraField] | None
    pipeline_parameters: dict[str, bool | int | float | str] | None


class AdapterResource(BaseModel):
    """A LoRA of the model; a request names it in `loras`."""

    name: str
    description: str


class WordResource(BaseModel):
    """A word that the model was taught by textual inversion; a prompt may have it."""

    word: str
    description: str


class ModelParameterResource(BaseModel):
    """A parameter that this model alone has; a request gives it in `pipeline_parameters`."""

    name: str
    type: str = Field(description="int, float, bool, string or choice")
    default: bool | int | float | str | None = Field(description="Null: the pipeline's own.")
    min: int | float | None = Field(description="The least number, or of a string the least characters.")
    max: int | float | None = Field(description="The greatest number, or of a string the most characters.")
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
    max_step_cache: int = Field(description="1 where the model has no step cache.")
    presets: list[PresetResource] = Field(description="What a request may ask for by name.")
    tasks: list[str] = Field(
        description="What it draws from: `text-to-image` is a prompt alone, the others begin with images."
    )
    loras: list[AdapterResource] = Field(description="What a request may name in `loras`.")
    embeddings: list[WordResource] = Field(description="Words that the model was taught besides.")
    parameters: list[ModelParameterResource] = Field(
        description="What a request may give in `pipeline_parameters`."
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


def model_resource(model: "Model", *, default: bool) -> ModelResource:
    """A model as the catalogue has it."""
    made_here = {"default", "tiers", "schedulers", "presets", "parameters", "tasks", "loras", "embeddings"}
    same = ModelResource.model_fields.keys() - made_here
    return ModelResource(
        **{name: getattr(model, name) for name in same},
        default=default,
        schedulers=list(model.schedulers),
        presets=[PresetResource(**preset.model_dump()) for preset in model.presets],
        tasks=list(model.tasks),
        loras=[AdapterResource(name=lora.name, description=lora.description) for lora in model.loras],
        embeddings=[WordResource(word=one.word, description=one.description) for one in model.embeddings],
        parameters=[ModelParameterResource(**parameter.model_dump()) for parameter in model.parameters],
        tiers=[tier.name for tier in model.tiers],
    )
