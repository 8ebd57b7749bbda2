"""Derives the `calotype.toml` entry of a diffusers model from its configuration.

Reads sizes, steps, schedulers and parameters from a model's small files and from the signature of its
pipeline's `__call__`. It opens no weights, and does not know whether the model draws well.
"""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import diffusers
import torch

from catalogue.catalogue import MAX_LCM_STEPS
from catalogue.pipeline_parameters import RESERVED, PipelineParameter
from catalogue.pipeline_tasks import PipelineTask
from catalogue.schedulers import ALL_SCHEDULERS
from engine.errors import LoadError, RequestInvalid
from engine.loading.layout import INDEX, WITHOUT_WEIGHTS, Layout, read_layout
from engine.loading.sibling_pipelines import class_for, tasks_beside
from engine.loading.side_multiple import patch_of, pixels_per_latent, side_multiple
from engine.partial_forwards import PARTIAL_FORWARDS, partial_forward_of
from engine.pipelines.components import denoiser_among
from engine.pipelines.pipeline_model import LEFT_OUT
from engine.pipelines.pipeline_task import own_tasks, refusal_of
from engine.pipelines.schedulers import Schedulers
from engine.request import SCHEDULERS

DISTILLED_SCHEDULERS = ("lcm", "tcd", "flow_match_lcm")
"""Schedulers that draw well only with models distilled for them, which the configuration does not show."""
FEW_STEP_SCHEDULERS = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler", "SCMScheduler")
FEW_STEPS = 4
AUTOENCODERS = ("vae", "movq", "vqvae", "vqgan")
MAX_LAYERS = 1000
"""The most blocks of one kind in a denoiser that is built to see whether it has a partial forward."""
MAX_STEPS = 150
MAX_GUIDANCE_SCALE = 30.0
USUAL_SIDE, LARGEST_SIDE = 1024, 4096
TYPES: Mapping[Any, Any] = {bool: "bool", int: "int", float: "float", str: "string"}
HARMFUL = re.compile(
    r"^num_|_steps$|_size$|path|_dir$|_file$|^strength$|^clean_caption$|^output_"
    r"|^clip_skip$|^mu$|^debug$|^tolerance$|^denoising_|upsampl|rewrite|^use_pe$"
)
"""Arguments that are not offered: they use memory without a bound, reach files, need other libraries or an
input image, run a language model, set up the scheduler, or end a call early. `clip_skip` is among them
because diffusers reads an attribute of `CLIPTextModel` for it that transformers 5 does not have."""
KNOWN: Mapping[str, tuple[float | None, float | None, str]] = {
    "guidance_rescale": (0.0, 1.0, "How far the guided prediction is rescaled to avoid overexposure."),
    "eta": (0.0, 1.0, "Amount of noise that DDIM adds at each step."),
    "true_cfg_scale": (0.0, 30.0, "Scale of the guidance by a negative prompt."),
    "max_sequence_length": (1, None, "Number of tokens of the prompt that are read."),
    "pag_scale": (0.0, 30.0, "Scale of the perturbed-attention guidance."),
    "pag_adaptive_scale": (0.0, 1.0, "How fast the perturbed-attention guidance decreases."),
    "cfg_normalization": (None, None, "Whether the guided prediction keeps the norm of the unguided one."),
    "cfg_trunc_ratio": (0.0, 1.0, "Share of the steps with guidance."),
    "system_prompt": (None, None, "Instruction placed before the prompt."),
    "padding_mask_crop": (0, 512, "Inpaint a crop around the mask with this margin in pixels."),
    "image_guidance_scale": (1.0, 30.0, "How closely to follow the input image."),
    "controlnet_conditioning_scale": (0.0, 2.0, "How strongly the ControlNet acts."),
    "control_guidance_start": (0.0, 1.0, "Share of the steps after which the ControlNet starts to act."),
    "control_guidance_end": (0.0, 1.0, "Share of the steps after which the ControlNet stops acting."),
}
"""Minimum, maximum and description of well-known arguments."""


@dataclass(frozen=True)
class Description:
    """A model as its configuration describes it; sides in pixels, `origins` gives the source of a number."""

    pipeline: str
    side: int
    min_side: int
    max_side: int
    side_multiple: int
    num_inference_steps: int
    max_num_inference_steps: int
    guidance_scale: float
    schedulers: tuple[str, ...]
    parameters: tuple[PipelineParameter, ...]
    tasks: tuple[PipelineTask, ...] = ("text-to-image",)
    takes_controlnet: bool = False  # diffusers has a ControlNet pipeline for this kind of model
    has_step_cache: bool = False
    deprecated_since: str | None = None  # the last version of diffusers that maintained the class
    origins: Mapping[str, str] = field(default_factory=dict)


def describe(folder: Path) -> Description:
    """Describe the model in `folder`; raises `LoadError` for a model that cannot be served."""
    if not folder.is_dir():
        raise LoadError("there is no such folder")
    layout = read_layout(folder / INDEX, list(LEFT_OUT))
    pipeline_class = _pipeline_class(layout)
    if refused := refusal_of(pipeline_class):
        raise LoadError(f"a {layout.pipeline} {refused}")
    signature = inspect.signature(pipeline_class.__call__).parameters
    if "scheduler" not in layout.classes:
        raise LoadError("it has no scheduler, so it does not draw images in steps")
    index = _json(folder, INDEX)
    denoiser_name = _denoiser(layout)
    denoiser = _config(folder, denoiser_name)
    scheduler = _scheduler(folder, layout)
    autoencoder = next((one for one in AUTOENCODERS if one in layout.components), "")
    latents = _config(folder, autoencoder) if autoencoder else {}
    factor = pixels_per_latent(autoencoder, latents)
    patch = patch_of(index, denoiser, latents)
    multiple = side_multiple(pipeline_class, factor, patch, index, denoiser)
    if multiple > LARGEST_SIDE:
        raise LoadError(f"its sides would be multiples of {multiple}, and the longest side is {LARGEST_SIDE}")
    side, side_origin = _native_side(pipeline_class, signature, denoiser, factor)
    side = max(multiple, min(side, LARGEST_SIDE) // multiple * multiple)
    positions = _number(denoiser.get("pos_embed_max_size"), 0) * patch * factor
    max_side = min(2 * side, positions or LARGEST_SIDE, LARGEST_SIDE) // multiple * multiple
    steps, scale, steps_origin = _defaults(pipeline_class, index, denoiser, scheduler)
    max_steps = _max_steps(scheduler, steps)
    tasks = _tasks(pipeline_class)
    return Description(
        pipeline=layout.pipeline,
        side=side,
        min_side=max(multiple, side // 4 // multiple * multiple),
        max_side=max(side, max_side),
        side_multiple=multiple,
        num_inference_steps=steps,
        max_num_inference_steps=max_steps,
        guidance_scale=scale,
        schedulers=_schedulers(pipeline_class, scheduler, steps, max_steps),
        parameters=tuple(_parameters_of(pipeline_class, tasks, denoiser)),
        tasks=tasks,
        takes_controlnet="control" not in tasks and class_for(pipeline_class, "control") is not None,
        has_step_cache=_has_step_cache(pipeline_class, layout.classes[denoiser_name][1], denoiser),
        deprecated_since=getattr(pipeline_class, "_last_supported_version", None),
        origins={
            "side": side_origin,
            "side_multiple": f"{factor} pixels a latent, {patch} latents a patch, and the checks of its call",
            "steps": steps_origin,
        },
    )


def _pipeline_class(layout: Layout) -> Any:
    found = getattr(diffusers, layout.pipeline, None)
    # diffusers' placeholder for a class whose libraries are not installed lists them in `_backends`.
    if missing := [one for one in getattr(found, "_backends", ()) if one not in ("torch", "transformers")]:
        raise LoadError(f"a {layout.pipeline} needs {' and '.join(missing)}, which is not installed")
    if inspect.isclass(found) and issubclass(found, diffusers.ModularPipeline):
        raise LoadError(f"a {layout.pipeline} is a modular pipeline, which is not supported")
    if not (inspect.isclass(found) and issubclass(found, diffusers.DiffusionPipeline)):
        raise LoadError(f"diffusers {diffusers.__version__} has no pipeline {layout.pipeline!r}")
    return found


def _tasks(pipeline_class: Any) -> tuple[PipelineTask, ...]:
    """Return the tasks that the model can offer; a denoiser made for a single image task offers only that."""
    own = own_tasks(pipeline_class)
    return tasks_beside(pipeline_class) if own[0] in ("text-to-image", "edit") else own


def _denoiser(layout: Layout) -> str:
    name = denoiser_among([one for one in layout.components if not one.startswith(WITHOUT_WEIGHTS)])
    if name is None:
        raise LoadError("it has neither a transformer nor a unet")
    return name


def _config(folder: Path, component: str, file: str = "config.json") -> dict[str, Any]:
    return _json(folder, f"{component}/{file}")


def _json(folder: Path, file: str) -> dict[str, Any]:
    """Return the JSON object in one of the model's files; raises `LoadError` if it cannot be read."""
    try:
        found = json.loads((folder / file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{file} cannot be read ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise LoadError(f"{file} is not a JSON object")
    return found


def _has_step_cache(pipeline_class: Any, class_name: str, config: dict[str, Any]) -> bool:
    """Whether the denoiser has a partial forward; it is built on the meta device, without its weights."""
    asks_for_tuples = "return_dict=False" in inspect.getsource(pipeline_class.__call__)
    if class_name not in PARTIAL_FORWARDS or not asks_for_tuples:  # a partial forward can only return tuples
        return False
    if most := [name for name, value in config.items() if "layers" in name and _deepest(value) > MAX_LAYERS]:
        raise LoadError(f"its {class_name} has more than {MAX_LAYERS} {most[0]}")
    try:
        with torch.device("meta"):
            return partial_forward_of(getattr(diffusers, class_name).from_config(config)) is not None
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise LoadError(f"its {class_name} cannot be built from its configuration: {reason}") from error


def _deepest(value: object) -> int:
    """Return the largest integer in an entry, which can be a list of lists of numbers."""
    if isinstance(value, list):
        return max(map(_deepest, value), default=0)
    return value if type(value) is int else 0


def _scheduler(folder: Path, layout: Layout) -> Any:
    library, name = layout.classes["scheduler"]
    scheduler_class = getattr(diffusers, name, None)
    if library != "diffusers" or not hasattr(scheduler_class, "from_config"):
        raise LoadError(f"diffusers {diffusers.__version__} has no scheduler {name!r}")
    config = _config(folder, "scheduler", "scheduler_config.json")
    try:
        return scheduler_class.from_config(config)  # type: ignore[union-attr]
    except (TypeError, ValueError, NotImplementedError) as error:
        raise LoadError(f"its scheduler {name} cannot be built: {' '.join(str(error).split())}") from error


def _number(value: object, otherwise: int) -> int:
    """Return the largest positive integer of an entry, which can be a list; else `otherwise`."""
    values = value if isinstance(value, list | tuple) else [value]
    return max((one for one in values if type(one) is int and one > 0), default=otherwise)


def _native_side(
    pipeline_class: Any, signature: Mapping[str, Any], denoiser: Mapping[str, Any], factor: int
) -> tuple[int, str]:
    if latents := _number(denoiser.get("sample_size"), 0):
        return latents * factor, f"sample_size {latents} of the denoiser, {factor} pixels a latent"
    if "width" in signature and type(width := signature["width"].default) is int:
        return width, "the default of the pipeline's width"
    if found := re.search(r"default_sample_size = (\d+)", inspect.getsource(pipeline_class.__init__)):
        return int(found[1]) * factor, f"default_sample_size {found[1]} of the pipeline"
    return USUAL_SIDE, "a guess: the configuration does not say it"


def _defaults(
    pipeline_class: Any, index: Mapping[str, Any], denoiser: Mapping[str, Any], scheduler: Any
) -> tuple[int, float, str]:
    """Return the default steps, the default guidance scale, and the source of both."""
    signature = inspect.signature(pipeline_class.__call__).parameters
    steps = min(_number(signature["num_inference_steps"].default, 20), MAX_STEPS)
    guidance = signature.get(_guidance_parameter(signature, denoiser))
    scale = guidance.default if guidance is not None else 1.0
    scale = float(scale) if isinstance(scale, int | float) else 1.0
    scale = min(max(scale, 0.0), MAX_GUIDANCE_SCALE)
    if distilled := _few_steps(pipeline_class, index, denoiser, scheduler):
        reads_scale = bool(denoiser.get("guidance_embeds") or denoiser.get("time_cond_proj_dim"))
        why = f"{distilled}, so it draws in few steps; the number is a guess, see its model card"
        return min(steps, FEW_STEPS), scale if reads_scale else min(scale, 1.0), why
    why = "a guess, the default of the pipeline's call: see its model card"
    return steps, scale, why


def _few_steps(
    pipeline_class: Any, index: Mapping[str, Any], denoiser: Mapping[str, Any], scheduler: Any
) -> str | None:
    """Return how the configuration shows that the model was distilled to few steps; None if it does not."""
    kind, config = type(scheduler).__name__, scheduler.config
    if index.get("is_distilled") is True:
        return f"{INDEX} says is_distilled"
    if denoiser.get("use_meanflow") is True:
        return "its denoiser says use_meanflow"
    if kind in FEW_STEP_SCHEDULERS:
        return f"it came with a {kind}"
    if denoiser.get("time_cond_proj_dim"):
        return "its UNet takes the guidance scale as an input (time_cond_proj_dim), as LCM models do"
    if kind == "EulerAncestralDiscreteScheduler" and config.get("timestep_spacing") == "trailing":
        return "it came with the scheduler of turbo models (EulerAncestralDiscreteScheduler, trailing)"
    # FLUX.1 [dev] has both entries, [schnell] has neither. Other pipelines do not read guidance_embeds, or
    # use dynamic shifting.
    call = pipeline_class.__call__
    has_scale = "guidance_scale" in inspect.signature(call).parameters
    reads_it = has_scale and "config.guidance_embeds" in inspect.getsource(call)
    is_static = kind == "FlowMatchEulerDiscreteScheduler" and not config.get("use_dynamic_shifting")
    if reads_it and is_static and denoiser.get("guidance_embeds") is False:
        return "it has neither guidance_embeds nor use_dynamic_shifting, as FLUX.1 [schnell]"
    return None


def _max_steps(scheduler: Any, steps: int) -> int:
    distilled = type(scheduler).__name__ == "LCMScheduler"
    most: int = min(
        MAX_LCM_STEPS if distilled else MAX_STEPS, scheduler.config.get("num_train_timesteps", 1000)
    )
    return max(steps, most)


def _guidance_parameter(signature: Mapping[str, Any], denoiser: Mapping[str, Any]) -> str:
    """Return the argument that gets a request's `guidance_scale`; see `PipelineModel.guidance_parameter`."""
    default = signature["true_cfg_scale"].default if "true_cfg_scale" in signature else None
    is_true_cfg = isinstance(default, int | float) and default > 1 and not denoiser.get("guidance_embeds")
    return "true_cfg_scale" if is_true_cfg else "guidance_scale"


def _schedulers(pipeline_class: Any, scheduler: Any, steps: int, max_steps: int) -> tuple[str, ...]:
    """Return the schedulers that a worker will accept, found by the same check as in the worker."""
    hands_sigmas = "sigmas = np.linspace" in inspect.getsource(pipeline_class.__call__)
    schedulers = Schedulers(scheduler, handed={"sigmas"} if hands_sigmas else ())
    found = []
    for name in schedulers.names():
        if name not in ALL_SCHEDULERS or name in DISTILLED_SCHEDULERS:
            continue
        try:
            schedulers.check_offer(name, SCHEDULERS[name], steps, max_steps)
        except (LoadError, RequestInvalid):
            continue
        found.append(name)
    if not found:
        raise LoadError(f"none of the supported schedulers works with its {type(scheduler).__name__}")
    return tuple(found)


def _parameters_of(
    pipeline_class: Any, tasks: tuple[PipelineTask, ...], denoiser: Mapping[str, Any]
) -> Iterator[PipelineParameter]:
    """Yield the parameters of every task's call, each once."""
    seen: set[str] = set()
    for task in tasks:
        task_class: Any = class_for(pipeline_class, task)  # never None for these tasks
        signature = inspect.signature(task_class.__call__).parameters
        for parameter in _parameters(signature, denoiser):
            if parameter.name not in seen:
                seen.add(parameter.name)
                yield parameter


def _parameters(signature: Mapping[str, Any], denoiser: Mapping[str, Any]) -> Iterator[PipelineParameter]:
    for name, argument in signature.items():
        kind = _type_of(argument, can_be_list=name in KNOWN)
        if (
            kind is None
            or name in RESERVED
            or HARMFUL.search(name)
            or not re.fullmatch(r"[a-z][a-z0-9_]*", name)
        ):
            continue
        if name == _guidance_parameter(signature, denoiser) or name.startswith(
            ("guidance_scale", "negative_")
        ):
            continue
        least, most, description = KNOWN.get(name, (None, None, ""))
        if name == "max_sequence_length":
            most = argument.default
        elif name not in KNOWN and kind == "int":
            continue  # an unknown integer has no bound, and can be a size in memory
        bounds = {"min": least, "max": most} if kind in ("int", "float") else {}
        default = argument.default
        if kind == "float" and default is not None:
            default = float(default)
        fields = {"default": default, "description": description, **bounds}
        try:
            yield PipelineParameter(
                name=name, type=kind, **{k: v for k, v in fields.items() if v is not None}
            )
        except ValueError:
            continue  # its default is out of the bounds for requests


def _type_of(argument: inspect.Parameter, *, can_be_list: bool) -> Any:
    """Return the type of a plain argument with a default; None for tensors, lists and functions.

    With `can_be_list`, an argument that takes a value or a list of values has the type of one value.
    """
    if argument.default is inspect.Parameter.empty:
        return None
    annotated = argument.annotation
    plain = {one for one in get_args(annotated) or (annotated,) if one is not NoneType}
    if annotated is inspect.Parameter.empty or isinstance(annotated, str):
        plain = {type(argument.default)}
    if can_be_list:  # the list has one value for each ControlNet
        plain = {one for one in plain if get_origin(one) is not list}
    if plain == {int, float}:
        plain = {float}
    found = TYPES.get(plain.pop()) if len(plain) == 1 else None
    if found == "int" and type(argument.default) is float:
        return "float"
    return found
