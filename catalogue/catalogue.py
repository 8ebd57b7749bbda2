"""What this installation serves: `calotype.toml`, checked and frozen.

Owns models, tiers, presets and worker plans, the schedulers' names as the web must know them without torch,
and which tier a size belongs to. It reads one file and knows no environment.
"""

import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from catalogue.parameters import ADAPTER_NAME, MAX_STEP_CACHE, PARAMETERS, Lora, ParameterType, Value
from catalogue.parts import Part, check_parts, check_revision
from catalogue.pipeline_parameters import MAX_DECLARED, PipelineParameter, value_faults
from catalogue.pipeline_tasks import PipelineTask

Positive = Annotated[int, Field(gt=0)]
ALL_SCHEDULERS = (
    "default",
    *("ddim", "ddpm", "euler", "euler_karras", "euler_ancestral", "heun", "heun_karras"),
    *("dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde", "dpmpp_2m_sde_karras", "dpmpp_2s"),
    *("unipc", "unipc_karras", "deis", "deis_karras", "pndm", "lcm", "tcd"),
    *("flow_match_euler", "flow_match_heun", "flow_match_lcm", "edm_euler", "edm_dpmpp_2m"),
)
MAX_LCM_STEPS = 50
"""Steps that a model's consistency distillation had, of which a request's are a choice."""
_NAMED_TABLES = ("presets", "parameters", "embeddings", "loras")


class SettingsError(Exception):
    """The environment or `calotype.toml` cannot be used; the message says which entry and why."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tier(_Frozen):
    """A resolution class of one model; its name names the Celery queues."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    model: str
    default_width: Positive
    default_height: Positive
    max_pixels: Positive
    max_step_batch_rows: Positive = 8


class Preset(_Frozen):
    """Parameters of a request under a name; what it leaves out is the model's default."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    num_inference_steps: Positive | None = None
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    guidance_cutoff: Annotated[float, Field(ge=0, le=1)] | None = None
    step_cache: Positive | None = None
    scheduler: str | None = None
    strength: Annotated[float, Field(ge=0, le=1)] | None = None
    loras: tuple[Lora, ...] | None = None
    pipeline_parameters: dict[str, Value] | None = None


class SchedulerOverrides(_Frozen):
    """Entries of the model's own scheduler that replace what its folder says; `None` leaves one as it is."""

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
    """What is added to one model: where its one safetensors file is, and what it does."""

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
    """An adapter, which requests ask for by its name."""


class EmbeddingFile(_Addition):
    """A textual inversion: a word that prompts may have from then on, `<name>` by default."""

    token: Annotated[str, Field(pattern=r"^\S{2,64}$")] | None = None

    @property
    def word(self) -> str:
        """What stands for it in a prompt."""
        return self.token or f"<{self.name}>"


class Model(_Frozen):
    """Diffusion weights and what the web must know of them without loading torch."""

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
    loras: tuple[LoraFile, ...] = ()
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
        if self.loras and (self.compile or self.cpu_offload == "sequential"):
            raise ValueError("loras: a model with compile or cpu_offload 'sequential' takes none")
        own = Part(path=self.path, weight_name=self.weight_name)
        check_parts(own, self.config, self.vae, self.transformer)
        is_gguf = self.transformer is not None and (self.transformer.file or "").endswith(".gguf")
        if is_gguf and self.quantization != "none":
            raise ValueError("quantization: the weights of a GGUF file are quantized already")
        if self.cpu_offload == "sequential" and (self.compile or self.quantization != "none"):
            raise ValueError("cpu_offload: 'sequential' goes with neither compile nor quantization")
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
            raise ValueError("controlnet: it goes with no cpu_offload")
        if self.controlnet is None and self.controlnet_revision is not None:
            raise ValueError("controlnet_revision: there is no controlnet that it could be of")

    def _check_preset(self, preset: Preset) -> None:
        named = f"preset {preset.name!r}"
        if preset.scheduler is not None and preset.scheduler not in self.schedulers:
            raise ValueError(f"{named}: scheduler {preset.scheduler!r} is not one of the model's")
        for field in ("num_inference_steps", "guidance_scale", "step_cache"):
            value, limit = getattr(preset, field), getattr(self, f"max_{field}")
            if value is not None and value > limit:
                raise ValueError(f"{named}: {field} is above {limit:g}")
        if fault := PARAMETERS["loras"].fault_of(preset.loras or ()):
            raise ValueError(f"{named}: loras {fault}")
        for lora in preset.loras or ():
            if lora.name not in [known.name for known in self.loras]:
                raise ValueError(f"{named}: {lora.name!r} is not one of the model's loras")
        for name, fault in value_faults(self.parameters, preset.pipeline_parameters or {}, self.name):
            raise ValueError(f"{named}: pipeline_parameters.{name} {fault}")

    def lora(self, name: str) -> LoraFile | None:
        """The adapter of that name, or nothing."""
        return next((lora for lora in self.loras if lora.name == name), None)

    @property
    def parts(self) -> dict[str, Part]:
        """What is read from elsewhere than the model's own path, by entry."""
        parts = {"config": self.config, "vae": self.vae, "transformer": self.transformer}
        return {entry: part for entry, part in parts.items() if part is not None}

    @property
    def max_step_cache(self) -> int:
        """The largest `step_cache` of a request: 1, which is none, where the model has no step cache.

        It has one where its entry says so, which its worker holds to be true. A model with `cpu_offload` has
        none: only whole models are fetched, and a step cache runs parts.
        """
        return MAX_STEP_CACHE if self.step_cache else 1

    @property
    def defaults(self) -> dict[str, Any]:
        """The parameters that this model chooses where a request leaves them out."""
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
        """The preset of that name, or nothing."""
        return next((preset for preset in self.presets if preset.name == name), None)

    @property
    def max_pixels(self) -> int:
        """What the largest tier of this model holds."""
        return self.tiers[-1].max_pixels


class WorkerPlan(_Frozen):
    """One `[[workers]]` entry: which devices run which tiers, and how many jobs each holds."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu:\d+|cuda:\d+)$")] = "auto"
    tiers: Annotated[tuple[str, ...], Field(min_length=1)]
    interactive_slots: Positive = 12
    bulk_slots: Positive = 8


class Catalogue(_Frozen):
    """`calotype.toml`, checked: the models, their tiers and the workers that serve them."""

    default_model: str
    models: tuple[Model, ...]
    workers: tuple[WorkerPlan, ...]

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
        """The type of each parameter that some model declares, by its name."""
        return {parameter.name: parameter.type for model in self.models for parameter in model.parameters}

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Every tier of every model, in the order of the file, small before large."""
        return tuple(tier for model in self.models for tier in model.tiers)

    def model(self, name: str | None) -> Model | None:
        """The model of that name, the default one for `None`, or nothing."""
        return next((model for model in self.models if model.name == (name or self.default_model)), None)

    def tier(self, name: str) -> Tier | None:
        """The tier of that name, or nothing."""
        return next((tier for tier in self.tiers if tier.name == name), None)


def tier_for(model: Model, width: int, height: int) -> Tier | None:
    """The smallest tier of `model` that holds `width * height` pixels, or nothing."""
    return next((tier for tier in model.tiers if width * height <= tier.max_pixels), None)


def load_catalogue(path: Path) -> Catalogue:
    """Read and check `calotype.toml`; raises `SettingsError` naming the entry that is wrong."""
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
    """The place of an entry by the names of its tables: `models.tiny` and not `models.0`."""
    entry, *parts = place.split(".")
    if entry != "models" or not parts:
        return place
    models = document["models"]
    parts[0] = name = list(models)[int(parts[0])]
    if len(parts) > 2 and parts[1] in _NAMED_TABLES and isinstance(models[name][parts[1]], dict):
        parts[2] = list(models[name][parts[1]])[int(parts[2])]
    return ".".join([entry, *parts])


def what_is_wrong(error: ValidationError, call: Callable[[str], str]) -> str:
    """Each entry that is wrong and why, on one line; without what was given, which may be a secret."""
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
    """Where an entry stands, as it was written: without the names that pydantic gives to alternatives."""
    return ".".join(str(part) for part in location if "[" not in str(part))
