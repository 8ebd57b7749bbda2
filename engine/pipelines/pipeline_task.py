"""Finds out which pipeline tasks a pipeline class of diffusers can draw, or why it can draw none.

Decides by the class's signatures, its components, its output class and words in its name, never by a list of
classes. It reads no model and builds nothing.
"""

import dataclasses
import inspect
import re
import sys
from typing import Any, get_args

from diffusers.utils import BaseOutput

from catalogue.pipeline_tasks import PipelineTask

NEEDED = ("prompt", "num_inference_steps", "generator", "output_type")
"""Arguments that the engine passes to every call."""
SIDES = ("width", "height")
"""Arguments also needed for text-to-image; with an input image, the size may come from that image."""
VIDEO = frozenset({"frames", "video"})
SOUND = frozenset({"audios", "audio", "sound"})
IMAGE = frozenset({"images", "image"})
"""Fields of output classes. Images are called `images`, and `image` in Kandinsky 5."""
VIDEO_ARGUMENTS = frozenset({"num_frames", "video_length", "frames", "video"})
CONTROLS = ("controlnet", "adapter", "control_image")
"""Components and arguments of classes for control images."""
IMAGE_ARGUMENTS = ("image", "images")
"""Arguments for a request's image; `images` only if a word of the class name says so (`IMAGE_TASK`)."""
IMAGE_TASK = re.compile(r"Img2Img|Image2Image|ImageToImage|Inpaint|Edit|Pix2Pix")
"""Words in names of classes that need an image, although the argument has the default None."""
OTHER_TASK = re.compile(r"Upscale|SuperResolution|Refiner|Variation|Depth2Img|DiffEdit|Layered")
"""Words in names of classes for image tasks that no pipeline task covers."""
TEXT_IS_NOT_ENOUGH = re.compile(r"^gligen_(boxes|phrases)$|^(source|target)_embeds$")
"""Arguments that a call needs although they have the default None."""


def refusal_of(pipeline_class: Any) -> str | None:
    """Why this class cannot draw requests, as a clause whose subject is the class; None if it can."""
    arguments = inspect.signature(pipeline_class.__call__).parameters
    outputs = outputs_of(pipeline_class)
    if outputs & VIDEO or VIDEO_ARGUMENTS & set(arguments):
        return "makes video, not an image"
    if outputs & SOUND:
        return "makes sound, not an image"
    if outputs and not outputs & IMAGE:
        return f"draws no image: its call returns {_listed(sorted(outputs)[:4])}"
    if OTHER_TASK.search(pipeline_class.__name__):
        return "does a task that requests cannot ask for"
    if "ControlNetUnion" in pipeline_class.__name__:
        return "needs a mode with its control image, which no request gives"
    task = own_tasks(pipeline_class)[0]
    if task == "control" and _begins_with_an_image(pipeline_class):
        return "needs an image beside a control image, but a request can have only one of the two"
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
        return f"needs {_listed(others)} besides a prompt, which requests do not have"
    needed = (*NEEDED, *SIDES) if task == "text-to-image" else NEEDED
    if missing := [name for name in needed if name not in arguments]:
        return f"has no argument {missing[0]} in its call, which every request sets"
    return None


def own_tasks(pipeline_class: Any) -> tuple[PipelineTask, ...]:
    """The tasks of this class, the usual one first; edit is the second one if an image is optional."""
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
    """The fields of the output class of its call; empty if diffusers does not say which class that is.

    The output class is in the return annotation, or named in the docstring, or defined in the module.
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
