"""The models, tiers, presets and worker plans of `calotype.toml`, validated and immutable.

Owns the rule that assigns a size to a tier. It reads one file and no environment variable.
"""

import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from catalogue.accounting import Prices
from catalogue.parameters import (
    ADAPTER_NAME,
    PARAMETERS,
    PRESET_PARAMETERS,
    Lora,
    Parameters,
    ParameterType,
    Value,
)
from catalogue.parts import Part, check_parts, check_revision
from catalogue.pipeline_parameters import MAX_DECLARED, PipelineParameter, value_faults
from catalogue.pipeline_tasks import PipelineTask
from catalogue.schedulers import ALL_SCHEDULERS
from catalogue.step_cache import MAX_STEP_CACHE

M = TypeVar("M", bound=BaseModel)
Positive = Annotated[int, Field(gt=0)]
MAX_LCM_STEPS = 50
"""The steps of a consistency distillation; the steps of a request are a selection of them."""
_NAMED_TABLES = ("presets", "parameters", "embeddings", "loras")


class SettingsError(Exception):
    """The environment or `calotype.toml` is not valid; the message names the entry and the reason."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tier(_Frozen):
    """A resolution class of one model; its name is part of the names of its Celery queues."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    model: str
    default_width: Positive
    default_height: Positive
    max_pixels: Positive
    max_step_batch_rows: Positive = 8


_PRESET_TYPES: Mapping[ParameterType, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "adapters": tuple[Lora, ...],
    "object": dict[str, Value],
}


def _with_preset_parameters(model: type[M]) -> type[M]:
    """Add a field for each parameter that a preset may set; what is left out is None."""
    fields: dict[str, Any] = {}
    for name in PRESET_PARAMETERS:
        known = PARAMETERS[name]
        kind: Any = Annotated[_PRESET_TYPES.get(known.type, str), Field(ge=known.min, le=known.max)]
        fields[name] = (kind | None, None)
    return create_model(model.__name__, __base__=model, __doc__=model.__doc__, __module__=__name__, **fields)


@_with_preset_parameters
class Preset(_Frozen):
    """Named values of parameters; the model's defaults apply to the parameters that it leaves out."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]

    def given(self) -> dict[str, Any]:
        """The parameters that it sets, by name."""
        return {name: value for name in PRESET_PARAMETERS if (value := getattr(self, name)) is not None}


class SchedulerOverrides(_Frozen):
    """Entries that replace those of the scheduler in the model's folder; `None` replaces nothing."""

    spacing: Literal["leading", "trailing", "linspace"] | None = None
    shift: Annotated[float, Field(gt=0, le=100)] | None = None
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    use_karras_sigmas: bool | None = None
    rescale_betas_zero_snr: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError("rescale_betas_zero_snr goes with prediction_type 'v_prediction' or 'sample'")
        return self


class _Addition(_Frozen):
    """A safetensors file that is added to one model: its place and its description."""

    name: Annotated[str, Field(pattern=ADAPTER_NAME)]
    path: str
    revision: str | None = None
    weight_name: Annotated[str, Field(pattern=r"\.safetensors$")] | None = None
    description: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_revision(self.revision)
        return self


class LoraFile(_Addition):
    """A LoRA adapter, which requests name."""


class EmbeddingFile(_Addition):
    """A textual inversion: it adds a word to prompts, `<name>` unless `token` says otherwise."""

    token: Annotated[str, Field(pattern=r"^\S{2,64}$")] | None = None

    @property
    def word(self) -> str:
        """The word that stands for it in a prompt."""
        return self.token or f"<{self.name}>"


class Model(_Frozen):
    """Diffusion weights, and the facts about them that the web needs without torch."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    path: str
    revision: str | None = None
    weight_name: str | None = None
    config: Part | None = None
    vae: Part | None = None
    transformer: Part | None = None
    variant: Annotated[str, Field(pattern=r"^\w+$")] | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    channels_last: bool = False
    compile: bool = False
    quantization: Literal["none", "int8", "fp8"] = "none"
    vae_slicing: bool = False
    vae_tiling: bool = False
    cpu_offload: Literal["none", "model", "sequential"] = "none"
    local_files_only: bool = True
    tasks: Annotated[tuple[PipelineTask, ...], Field(min_length=1)] = ("text-to-image",)
    controlnet: str | None = None
    controlnet_revision: str | None = None
    step_cache: bool = False
    schedulers: Annotated[tuple[str, ...], Field(min_length=1)]
    scheduler: SchedulerOverrides = SchedulerOverrides()
    default_num_inference_steps: Positive = 20
    max_num_inference_steps: Positive = 150
    default_guidance_scale: Annotated[float, Field(ge=0)] = 4.0
    max_guidance_scale: Annotated[float, Field(gt=0)] = 30.0
    min_side: Positive
    max_side: Positive
    side_multiple: Positive = 8
    max_prompt_characters: Positive = 2000
    presets: tuple[Preset, ...] = ()
    parameters: Annotated[tuple[PipelineParameter, ...], Field(max_length=MAX_DECLARED)] = ()
    embeddings: tuple[EmbeddingFile, ...] = ()
    adapters: Annotated[tuple[LoraFile, ...], Field(alias="loras")] = ()
    max_lora_bytes: Positive = 2**30
    tiers: tuple[Tier, ...]

    @model_validator(mode="before")
    @classmethod
    def _refuse_family(cls, data: dict[str, object]) -> dict[str, object]:
        if "family" in data:
            raise ValueError("family: delete this line; the model's folder says which pipeline it is for")
        return data

    @model_validator(mode="before")
    @classmethod
    def _name_tables(cls, data: dict[str, object]) -> dict[str, object]:
        for entry in _NAMED_TABLES:
            tables = data.get(entry)
            if isinstance(tables, dict):
                named = [{"name": name, **_table(entry, name, table)} for name, table in tables.items()]
                data = {**data, entry: named}
        return data

    @model_validator(mode="before")
    @classmethod
    def _name_tiers(cls, data: dict[str, object]) -> dict[str, object]:
        tiers = data.get("tiers")
        if isinstance(tiers, dict):
            named = [{"name": name, "model": data.get("name"), **tier} for name, tier in tiers.items()]
            data = {**data, "tiers": sorted(named, key=lambda tier: tier.get("max_pixels", 0))}
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.tiers:
            raise ValueError(f"model {self.name!r} has no tier")
        check_revision(self.revision)
        check_revision(self.controlnet_revision, "controlnet_revision")
        self._check_tasks()
        if self.adapters and (self.compile or self.cpu_offload == "sequential"):
            raise ValueError("loras: a model with compile or cpu_offload 'sequential' takes none")
        own = Part(path=self.path, weight_name=self.weight_name)
        check_parts(own, self.config, self.vae, self.transformer)
        is_gguf = self.transformer is not None and (self.transformer.file or "").endswith(".gguf")
        if is_gguf and self.quantization != "none":
            raise ValueError("quantization: the weights of a GGUF file are quantized already")
        if self.cpu_offload == "sequential" and (self.compile or self.quantization != "none"):
            raise ValueError("cpu_offload: 'sequential' cannot be combined with compile or quantization")
        if self.step_cache and self.cpu_offload != "none":
            raise ValueError("step_cache: a model with cpu_offload has none")
        for scheduler in self.schedulers:
            if scheduler not in ALL_SCHEDULERS:
                raise ValueError(f"schedulers: {scheduler!r} is not one of {', '.join(ALL_SCHEDULERS)}")
        if "lcm" in self.schedulers and self.max_num_inference_steps > MAX_LCM_STEPS:
            raise ValueError(f"max_num_inference_steps: the scheduler lcm takes at most {MAX_LCM_STEPS}")
        if self.default_num_inference_steps > self.max_num_inference_steps:
            raise ValueError("default_num_inference_steps is above max_num_inference_steps")
        if self.default_guidance_scale > self.max_guidance_scale:
            raise ValueError("default_guidance_scale is above max_guidance_scale")
        for preset in self.presets:
            self._check_preset(preset)
        for tier in self.tiers:
            if tier.default_width * tier.default_height > tier.max_pixels:
                raise ValueError(f"tier {tier.name!r}: its default size is above its max_pixels")
        return self

    def _check_tasks(self) -> None:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("tasks: one is there twice")
        if self.controlnet is not None and "control" not in self.tasks:
            raise ValueError("controlnet: it is for the task 'control', which tasks does not name")
        if self.controlnet is not None and self.cpu_offload != "none":
            raise ValueError("controlnet: it cannot be combined with cpu_offload")
        if self.controlnet is None and self.controlnet_revision is not None:
            raise ValueError("controlnet_revision: there is no controlnet that it could be of")

    def _check_preset(self, preset: Preset) -> None:
        named, given = f"preset {preset.name!r}", preset.given()
        if given.get("scheduler", self.schedulers[0]) not in self.schedulers:
            raise ValueError(f"{named}: scheduler {given['scheduler']!r} is not one of the model's")
        for name in ("num_inference_steps", "guidance_scale", "step_cache"):
            limit = getattr(self, f"max_{name}")
            if given.get(name, 0) > limit:
                raise ValueError(f"{named}: {name} is above {limit:g}")
        for name, value in given.items():
            if fault := PARAMETERS[name].fault_of(value):
                raise ValueError(f"{named}: {name} {fault}")
        for lora in given.get("loras", ()):
            if self.lora(lora.name) is None:
                raise ValueError(f"{named}: {lora.name!r} is not one of the model's loras")
        for name, fault in value_faults(self.parameters, given.get("pipeline_parameters", {}), self.name):
            raise ValueError(f"{named}: pipeline_parameters.{name} {fault}")

    def lora(self, name: str) -> LoraFile | None:
        """The adapter of that name, or None."""
        return next((lora for lora in self.adapters if lora.name == name), None)

    def adapter_faults(self, parameters: Parameters) -> Iterator[tuple[str, str]]:
        """The place and the fault of each named adapter that the model does not have."""
        known = [lora.name for lora in self.adapters]
        there_is = f"there is: {', '.join(known)}" if known else "it has none"
        for index, lora in enumerate(parameters.loras):
            if lora.name not in known:
                yield f"loras/{index}/name", f"is not one of this model's adapters; {there_is}"

    @property
    def parts(self) -> dict[str, Part]:
        """The parts that are not read from the model's own path, by entry."""
        parts = {"config": self.config, "vae": self.vae, "transformer": self.transformer}
        return {entry: part for entry, part in parts.items() if part is not None}

    @property
    def max_step_cache(self) -> int:
        """The largest `step_cache` that a request may have; 1 if the model has no step cache.

        The entry `step_cache` says whether it has one, and its worker checks that. A model with
        `cpu_offload` has none: offloading moves whole models, and cached steps run parts.
        """
        return MAX_STEP_CACHE if self.step_cache else 1

    @property
    def defaults(self) -> dict[str, Any]:
        """The values that this model gives to parameters that a request leaves out."""
        smallest = self.tiers[0]
        return {
            "width": smallest.default_width,
            "height": smallest.default_height,
            "num_inference_steps": self.default_num_inference_steps,
            "guidance_scale": self.default_guidance_scale,
            "scheduler": self.schedulers[0],
            "pipeline_parameters": {
                parameter.name: parameter.default
                for parameter in self.parameters
                if parameter.default is not None
            },
        }

    def preset(self, name: str) -> Preset | None:
        """The preset of that name, or None."""
        return next((preset for preset in self.presets if preset.name == name), None)

    @property
    def max_pixels(self) -> int:
        """The most pixels of an image, which the largest tier allows."""
        return self.tiers[-1].max_pixels


class WorkerPlan(_Frozen):
    """One `[[workers]]` entry: the device, its tiers, and how many jobs it may have in flight.

    Slots that are left out follow the row cap of the worker's step batches (`catalogue.lanes.default_slots`).
    """

    device: Annotated[str, Field(pattern=r"^(auto|cpu:\d+|cuda:\d+)$")] = "auto"
    tiers: Annotated[tuple[str, ...], Field(min_length=1)]
    interactive_slots: Positive | None = None
    bulk_slots: Positive | None = None


class Catalogue(_Frozen):
    """The contents of `calotype.toml`: models, their tiers, the workers that serve them, and prices."""

    default_model: str
    models: tuple[Model, ...]
    workers: tuple[WorkerPlan, ...]
    prices: Prices = Prices()

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [tier.name for tier in self.tiers]
        if len(set(names)) != len(names):
            raise ValueError("a tier belongs to exactly one model: a tier name is used twice")
        if self.default_model not in [model.name for model in self.models]:
            raise ValueError(f"default_model {self.default_model!r} is not one of [models]")
        self._check_parameters()
        for plan in self.workers:
            for tier in plan.tiers:
                if tier not in names:
                    raise ValueError(f"[[workers]] names tier {tier!r}; there is: {', '.join(names)}")
        return self

    def _check_parameters(self) -> None:
        types: dict[str, tuple[str, str]] = {}
        for model in self.models:
            for parameter in model.parameters:
                first, known = types.setdefault(parameter.name, (model.name, parameter.type))
                if parameter.type != known:
                    raise ValueError(
                        f"models.{model.name}.parameters.{parameter.name}: type is {parameter.type!r}, and "
                        f"{known!r} for model {first!r}: a column of a CSV can have one type only"
                    )

    @property
    def pipeline_types(self) -> dict[str, ParameterType]:
        """The types of the parameters that models declare, by name."""
        return {parameter.name: parameter.type for model in self.models for parameter in model.parameters}

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """All tiers, in the order of the models in the file, and from small to large."""
        return tuple(tier for model in self.models for tier in model.tiers)

    def model(self, name: str | None) -> Model | None:
        """The model of that name, or None if there is none; for `None`, the default model."""
        return next((model for model in self.models if model.name == (name or self.default_model)), None)

    def tier(self, name: str) -> Tier | None:
        """The tier of that name, or None."""
        return next((tier for tier in self.tiers if tier.name == name), None)


def tier_for(model: Model, width: int, height: int) -> Tier | None:
    """The smallest tier of the model that allows `width * height` pixels, or None."""
    return next((tier for tier in model.tiers if width * height <= tier.max_pixels), None)


def load_catalogue(path: Path) -> Catalogue:
    """Read and validate `calotype.toml`. Raises `SettingsError`, which names the wrong entry."""
    document: dict[str, Any] = {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        models = [{"name": name, **model} for name, model in document.get("models", {}).items()]
        return Catalogue.model_validate({**document, "models": models})
    except ValidationError as error:
        named = partial(_with_names, document)
        raise SettingsError(f"{path}: {what_is_wrong(error, named)}") from error
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"{path}: {error}") from error


def _with_names(document: Mapping[str, Any], place: str) -> str:
    """The place of an entry with the names of its tables, `models.tiny` instead of `models.0`."""
    entry, *parts = place.split(".")
    if entry != "models" or not parts:
        return place
    models = document["models"]
    parts[0] = name = list(models)[int(parts[0])]
    if len(parts) > 2 and parts[1] in _NAMED_TABLES and isinstance(models[name][parts[1]], dict):
        parts[2] = list(models[name][parts[1]])[int(parts[2])]
    return ".".join([entry, *parts])


def what_is_wrong(error: ValidationError, call: Callable[[str], str]) -> str:
    """Every wrong entry and the reason, on one line. Values are left out: they may be secrets."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    places = [_place(part["loc"]) for part in found]
    messages = [part["msg"].removeprefix("Value error, ") for part in found]
    return "; ".join(
        f"{call(place)}: {message}" if place else message
        for place, message in zip(places, messages, strict=True)
    )


def _table(entry: str, name: str, table: object) -> dict[str, object]:
    if not isinstance(table, dict):
        raise ValueError(f"{entry}.{name} is not a table")
    return table


def _place(location: tuple[int | str, ...]) -> str:
    """The place of an entry in the file, without the names that pydantic gives to alternatives."""
    return ".".join(str(part) for part in location if "[" not in str(part))
