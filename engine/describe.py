"""The entry of `calotype.toml` for a model of diffusers, read from its configuration alone.

Owns what the small files of a model and the signature of its pipeline's `__call__` say about sizes, steps,
schedulers and parameters. It opens no weights, and does not know whether the model draws well.
"""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import diffusers
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

from catalogue.catalogue import ALL_SCHEDULERS, MAX_LCM_STEPS
from catalogue.pipeline_parameters import RESERVED, PipelineParameter
from engine.errors import LoadError, RequestInvalid
from engine.exchange import is_denoiser
from engine.layout import INDEX, WITHOUT_WEIGHTS, Layout, read_layout
from engine.pipeline_model import LEFT_OUT
from engine.request import SCHEDULERS
from engine.schedulers import Schedulers

NEEDED = ("prompt", "width", "height", "num_inference_steps")
INPUTS = ("image", "mask_image", "control_image", "video", "num_frames", "audio_length_in_s")
OTHER_TASKS = re.compile(r"Img2Img|Inpaint|ControlNet|Edit|Kontext|Upscale|Adapter|Video|Pix2Pix|Depth2Img")
DISTILLED_SCHEDULERS = ("lcm", "tcd", "flow_match_lcm")
"""They draw well with models that were distilled for them, which configuration does not tell."""
FEW_STEPS = 4
MAX_STEPS = 150
MAX_GUIDANCE_SCALE = 30.0
USUAL_SIDE, LARGEST_SIDE = 1024, 4096
TYPES: Mapping[Any, Any] = {bool: "bool", int: "int", float: "float", str: "string"}
HARMFUL = re.compile(
    r"^num_|_steps$|_size$|path|_dir$|_file$|^strength$|^clean_caption$|^output_"
    r"|^mu$|^debug$|^tolerance$|^denoising_|upsampl|rewrite|^use_pe$"
)
"""Arguments that cost memory without a bound, reach files, need other libraries or an input image,
run a language model, set the scheduler up, or end a call early."""
KNOWN: Mapping[str, tuple[float | None, float | None, str]] = {
    "guidance_rescale": (0.0, 1.0, "How far the guided prediction is scaled back against overexposure."),
    "eta": (0.0, 1.0, "How much noise DDIM adds at each step."),
    "true_cfg_scale": (0.0, 30.0, "Scale of the guidance by a negative prompt."),
    "clip_skip": (0, 4, "How many of the last layers of the text encoder are left out."),
    "max_sequence_length": (1, None, "How many tokens of the prompt are read."),
    "pag_scale": (0.0, 30.0, "Scale of the perturbed-attention guidance."),
    "pag_adaptive_scale": (0.0, 1.0, "How fast the perturbed-attention guidance falls."),
    "cfg_normalization": (None, None, "Whether the guided prediction keeps the norm of the unguided one."),
    "cfg_trunc_ratio": (0.0, 1.0, "The share of the steps that is guided."),
    "system_prompt": (None, None, "The instruction that goes before the prompt."),
}
"""The least and the largest value of well-known arguments, and what they are for."""


@dataclass(frozen=True)
class Description:
    """What the configuration of a model says; sides are in pixels, and `origins` says why a number is so."""

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
    origins: Mapping[str, str] = field(default_factory=dict)


def describe(folder: Path) -> Description:
    """Describe the text-to-image model in `folder`; raises `LoadError` where it is none."""
    if not folder.is_dir():
        raise LoadError("there is no such folder")
    layout = read_layout(folder / INDEX, list(LEFT_OUT))
    pipeline_class = _pipeline_class(layout)
    signature = inspect.signature(pipeline_class.__call__).parameters
    _check_task(layout.pipeline, signature)
    if "scheduler" not in layout.classes:
        raise LoadError("it has no scheduler, so its images are not drawn in steps")
    denoiser = _config(folder, _denoiser(layout))
    scheduler = _scheduler(folder, layout)
    factor = _pixels_per_latent(_config(folder, "vae") if "vae" in layout.components else {})
    is_packed = hasattr(pipeline_class, "_pack_latents")  # two latents a side are one token, as FLUX has it
    patch = 2 if is_packed else _number(denoiser.get("patch_size"), 1)
    multiple = max(8, factor * patch)
    multiple *= 1 if multiple % 8 == 0 else 8
    side, side_origin = _native_side(pipeline_class, signature, denoiser, factor)
    side = max(multiple, min(side, LARGEST_SIDE) // multiple * multiple)
    positions = _number(denoiser.get("pos_embed_max_size"), 0) * patch * factor
    max_side = min(2 * side, positions or LARGEST_SIDE, LARGEST_SIDE) // multiple * multiple
    steps, scale, steps_origin = _defaults(layout.pipeline, signature, denoiser, scheduler)
    max_steps = _max_steps(scheduler, steps)
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
        parameters=tuple(_parameters(signature, denoiser, _text_layers(folder, layout))),
        origins={
            "side": side_origin,
            "side_multiple": f"{factor} pixels a latent of the VAE, {patch} latents a patch",
            "steps": steps_origin,
        },
    )


def _pipeline_class(layout: Layout) -> Any:
    found = getattr(diffusers, layout.pipeline, None)
    if not (inspect.isclass(found) and issubclass(found, diffusers.DiffusionPipeline)):
        raise LoadError(f"diffusers {diffusers.__version__} has no pipeline {layout.pipeline!r}")
    return found


def _check_task(name: str, signature: Mapping[str, Any]) -> None:
    texts = {one.__name__ for one in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    inputs = [] if name in texts else [one for one in INPUTS if one in signature]
    if OTHER_TASKS.search(name) or inputs:
        raise LoadError(
            f"a {name} does not draw from text alone: images, masks and videos as input are not served yet"
        )
    if missing := [one for one in NEEDED if one not in signature]:
        raise LoadError(f"the call of a {name} has no {missing[0]}, which requests set")


def _denoiser(layout: Layout) -> str:
    names = [one for one in layout.components if not one.startswith(WITHOUT_WEIGHTS) and is_denoiser(one)]
    if not names:
        raise LoadError("it has neither a transformer nor a unet")
    return names[0]


def _config(folder: Path, component: str, file: str = "config.json") -> dict[str, Any]:
    """The configuration of one component; raises `LoadError` where it cannot be read."""
    try:
        found = json.loads((folder / component / file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{component}/{file} cannot be read ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise LoadError(f"{component}/{file} is no object of JSON")
    return found


def _scheduler(folder: Path, layout: Layout) -> Any:
    library, name = layout.classes["scheduler"]
    scheduler_class = getattr(diffusers, name, None)
    if library != "diffusers" or not hasattr(scheduler_class, "from_config"):
        raise LoadError(f"diffusers {diffusers.__version__} has no scheduler {name!r}")
    config = _config(folder, "scheduler", "scheduler_config.json")
    try:
        return scheduler_class.from_config(config)  # type: ignore[union-attr]
    except (TypeError, ValueError, NotImplementedError) as error:
        raise LoadError(f"its scheduler {name} cannot be made: {' '.join(str(error).split())}") from error


def _number(value: object, otherwise: int) -> int:
    """The largest whole number of a configuration's entry, which can be a list."""
    values = value if isinstance(value, list | tuple) else [value]
    return max((one for one in values if type(one) is int and one > 0), default=otherwise)


def _pixels_per_latent(vae: Mapping[str, Any]) -> int:
    """`vae_scale_factor`, as the pipelines of diffusers compute it from the configuration of the VAE."""
    for entry, more in (
        ("encoder_block_out_channels", 0),
        ("block_out_channels", 0),
        ("temperal_downsample", 1),
    ):
        blocks = vae.get(entry)
        if isinstance(blocks, list) and 0 < len(blocks) <= 8:
            return int(2 ** (len(blocks) - 1 + more))
    return 8


def _native_side(
    pipeline_class: Any, signature: Mapping[str, Any], denoiser: Mapping[str, Any], factor: int
) -> tuple[int, str]:
    if latents := _number(denoiser.get("sample_size"), 0):
        return latents * factor, f"sample_size {latents} of the denoiser, {factor} pixels a latent"
    if type(width := signature["width"].default) is int:
        return width, "the default of the pipeline's width"
    if found := re.search(r"default_sample_size = (\d+)", inspect.getsource(pipeline_class.__init__)):
        return int(found[1]) * factor, f"default_sample_size {found[1]} of the pipeline"
    return USUAL_SIDE, "a guess: nothing in the configuration says it"


def _defaults(
    name: str, signature: Mapping[str, Any], denoiser: Mapping[str, Any], scheduler: Any
) -> tuple[int, float, str]:
    """Steps, guidance scale, and where they come from."""
    kind = type(scheduler).__name__
    if name == "FluxPipeline" and not denoiser.get("guidance_embeds"):
        return FEW_STEPS, 0.0, "a guess: without guidance_embeds it is distilled to few steps, as schnell is"
    if kind in ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler"):
        return FEW_STEPS, 1.0, f"a guess: a model with a {kind} is distilled to few steps"
    if kind == "EulerAncestralDiscreteScheduler" and scheduler.config.timestep_spacing == "trailing":
        return FEW_STEPS, 0.0, "a guess: its scheduler is that of turbo models, which take few steps"
    steps = _number(signature["num_inference_steps"].default, 20)
    guidance = signature.get(_guidance_parameter(signature, denoiser))
    scale = guidance.default if guidance is not None else 1.0
    scale = float(scale) if isinstance(scale, int | float) else 1.0
    return (
        min(steps, MAX_STEPS),
        min(max(scale, 0.0), MAX_GUIDANCE_SCALE),
        "the defaults of the pipeline's call",
    )


def _max_steps(scheduler: Any, steps: int) -> int:
    distilled = type(scheduler).__name__ == "LCMScheduler"
    most: int = min(
        MAX_LCM_STEPS if distilled else MAX_STEPS, scheduler.config.get("num_train_timesteps", 1000)
    )
    return max(steps, most)


def _guidance_parameter(signature: Mapping[str, Any], denoiser: Mapping[str, Any]) -> str:
    """The argument that is a request's `guidance_scale`, as `PipelineModel.guidance_parameter` chooses it."""
    is_true_cfg = "true_cfg_scale" in signature and not denoiser.get("guidance_embeds")
    return "true_cfg_scale" if is_true_cfg else "guidance_scale"


def _schedulers(pipeline_class: Any, scheduler: Any, steps: int, max_steps: int) -> tuple[str, ...]:
    """Those that the worker will accept: tried here as it tries them, with what the pipeline hands over."""
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
        raise LoadError(f"no scheduler here can draw with its {type(scheduler).__name__}")
    return tuple(found)


def _text_layers(folder: Path, layout: Layout) -> int | None:
    if "text_encoder" not in layout.components:
        return None
    return _number(_config(folder, "text_encoder").get("num_hidden_layers"), 0) or None


def _parameters(
    signature: Mapping[str, Any], denoiser: Mapping[str, Any], text_layers: int | None
) -> Iterator[PipelineParameter]:
    for name, argument in signature.items():
        kind = _type_of(argument)
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
        elif name == "clip_skip" and text_layers is not None:
            most = min(4, text_layers - 1)
        elif name not in KNOWN and kind == "int":
            continue  # a whole number that nobody bounded can count anything, memory included
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
            continue  # its default is beyond what a request could give


def _type_of(argument: inspect.Parameter) -> Any:
    """The type of a plain argument with a default; nothing for tensors, lists and functions."""
    if argument.default is inspect.Parameter.empty:
        return None
    annotated = argument.annotation
    plain = {one for one in get_args(annotated) or (annotated,) if one is not NoneType}
    if annotated is inspect.Parameter.empty or isinstance(annotated, str):
        plain = {type(argument.default)}
    if plain == {int, float}:
        plain = {float}
    found = TYPES.get(plain.pop()) if len(plain) == 1 else None
    if found == "int" and type(argument.default) is float:
        return "float"
    return found
