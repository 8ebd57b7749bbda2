"""Which pipeline tasks a pipeline class of diffusers is for, or why it draws no request.

Owns what the signature of a class's call, its components, its output class and the words of its name say
about that. It knows no list of classes, reads no model, and builds nothing.
"""

import dataclasses
import inspect
import re
import sys
from typing import Any, get_args

from diffusers.utils import BaseOutput

from catalogue.pipeline_tasks import PipelineTask

NEEDED = ("prompt", "num_inference_steps", "generator", "output_type")
"""Arguments that the engine gives to every call."""
SIDES = ("width", "height")
"""The same where it draws from text alone; else an image can say its size by its own."""
VIDEO = frozenset({"frames", "video"})
SOUND = frozenset({"audios", "audio", "sound"})
IMAGE = frozenset({"images", "image"})
"""Fields of output classes. diffusers calls a list of images `images`, Kandinsky 5 `image`."""
VIDEO_ARGUMENTS = frozenset({"num_frames", "video_length", "frames", "video"})
CONTROLS = ("controlnet", "adapter", "control_image")
"""Components and arguments of classes that follow a control image."""
IMAGE_ARGUMENTS = ("image", "images")
"""Those of a call that an image of a request can be; `images` only where a word of the name says so."""
IMAGE_TASK = re.compile(r"Img2Img|Image2Image|ImageToImage|Inpaint|Edit|Pix2Pix")
"""Words of class names: these tasks begin with an image, though its argument has the default None."""
OTHER_TASK = re.compile(r"Upscale|SuperResolution|Refiner|Variation|Depth2Img|DiffEdit|Layered")
"""Words of class names: what they make of an image no pipeline task asks for."""
TEXT_IS_NOT_ENOUGH = re.compile(r"^gligen_(boxes|phrases)$|^(source|target)_embeds$")
"""Arguments with the default None that a call fails without."""


def refusal_of(pipeline_class: Any) -> str | None:
    """Why this class cannot draw requests, as a clause whose subject is the class; None where it can."""
    arguments = inspect.signature(pipeline_class.__call__).parameters
    outputs = outputs_of(pipeline_class)
    if outputs & VIDEO or VIDEO_ARGUMENTS & set(arguments):
        return "makes video, not an image"
    if outputs & SOUND:
        return "makes sound, not an image"
    if outputs and not outputs & IMAGE:
        return f"draws no image: its call returns {_listed(sorted(outputs)[:4])}"
    if OTHER_TASK.search(pipeline_class.__name__):
        return "makes of an image what no request asks for"
    if "ControlNetUnion" in pipeline_class.__name__:
        return "needs a mode with its control image, which no request gives"
    task = own_tasks(pipeline_class)[0]
    if task == "control" and _begins_with_an_image(pipeline_class):
        return "needs an image beside a control image, and a request gives one of the two"
    given = (
        ("prompt", *IMAGE_ARGUMENTS, "mask_image", "control_image")
        if task != "text-to-image"
        else ("prompt",)
    )
    required = [name for name, one in arguments.items() if _is_required(name, one)]
    others = [
        name for name in (*required, *filter(TEXT_IS_NOT_ENOUGH.search, arguments)) if name not in given
    ]
    if others:
        return f"needs {_listed(others)} besides a prompt, which no request has"
    needed = (*NEEDED, *SIDES) if task == "text-to-image" else NEEDED
    if missing := [name for name in needed if name not in arguments]:
        return f"has no {missing[0]} among the arguments of its call, which requests set"
    return None


def own_tasks(pipeline_class: Any) -> tuple[PipelineTask, ...]:
    """What this class is for, as published: its usual task first, and edit where an image is optional."""
    arguments = inspect.signature(pipeline_class.__call__).parameters
    components = inspect.signature(pipeline_class.__init__).parameters
    if any(name in arguments or name in components for name in CONTROLS):
        return ("control",)
    if "mask_image" in arguments:
        return ("inpainting",)
    is_named = IMAGE_TASK.search(pipeline_class.__name__) is not None
    if not ("image" in arguments or ("images" in arguments and is_named)):
        return ("text-to-image",)
    if "strength" in arguments:
        return ("image-to-image",)
    is_needed = any(_is_required(name, arguments[name]) for name in IMAGE_ARGUMENTS if name in arguments)
    return ("edit",) if is_named or is_needed else ("text-to-image", "edit")


def _begins_with_an_image(pipeline_class: Any) -> bool:
    arguments = inspect.signature(pipeline_class.__call__).parameters
    is_named = IMAGE_TASK.search(pipeline_class.__name__) is not None
    return is_named or any(name in arguments for name in ("strength", "mask_image", "control_mask"))


def _is_required(name: str, argument: inspect.Parameter) -> bool:
    has_default = argument.default is not inspect.Parameter.empty
    is_named = argument.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return name != "self" and not has_default and is_named


def outputs_of(pipeline_class: Any) -> frozenset[str]:
    """The fields of what its call returns; empty where diffusers does not say.

    They are those of the output class in its annotation, else of the one that its documentation names or its
    module defines.
    """
    returned = inspect.signature(pipeline_class.__call__).return_annotation
    found = [one for one in get_args(returned) or (returned,) if _is_output(one)]
    if not found:
        names = vars(sys.modules[pipeline_class.__module__])
        documented = (inspect.getdoc(pipeline_class.__call__) or "").partition("Returns:")[2]
        mentioned = [names.get(name) for name in re.findall(r"\w+Output\b", documented)]
        defined = [
            one for one in names.values() if getattr(one, "__module__", "") == pipeline_class.__module__
        ]
        found = [one for one in (*mentioned, *defined) if _is_output(one)]
    return frozenset(field.name for field in dataclasses.fields(found[0])) if found else frozenset()


def _is_output(kind: object) -> bool:
    return inspect.isclass(kind) and issubclass(kind, BaseOutput) and kind is not BaseOutput


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
