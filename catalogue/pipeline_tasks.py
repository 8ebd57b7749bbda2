"""The pipeline tasks: from what images besides its text a request is drawn, and which one a request means.

Owns the rule by which parameters name a task, and what is wrong with those that fit none that a model offers.
The web and the engine share it; it knows no pipeline, and no file behind an id.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from catalogue.parameters import Parameters

PipelineTask = Literal["text-to-image", "image-to-image", "inpainting", "edit", "control"]
PIPELINE_TASKS: tuple[PipelineTask, ...] = get_args(PipelineTask)
WITH_STRENGTH = ("image-to-image", "inpainting")
"""Tasks that begin with an image under noise; `strength` says how much of it."""


def task_of(parameters: Parameters, offered: Sequence[PipelineTask]) -> PipelineTask:
    """The task that these parameters ask for, whether or not it is among those that a model offers.

    An `image` is edited where the model edits; where it does both, a `strength` asks for image-to-image.
    """
    if parameters.control_image is not None:
        return "control"
    if parameters.mask_image is not None:
        return "inpainting"
    if not parameters.image:
        return "text-to-image"
    does_both = "edit" in offered and "image-to-image" in offered
    asks_for_edit = parameters.strength is None if does_both else "edit" in offered
    return "edit" if asks_for_edit else "image-to-image"


def task_faults(
    parameters: Parameters, offered: Sequence[PipelineTask], model: str
) -> Iterator[tuple[str, str]]:
    """Each parameter that fits no task that the model offers, and why; nothing where they fit one."""
    task = task_of(parameters, offered)
    offers = f"model {model!r} offers {', '.join(offered)}"
    if task not in offered:
        yield _not_offered(task, offered, offers)
        return
    if task == "control" and (parameters.image or parameters.mask_image is not None):
        yield "image" if parameters.image else "mask_image", "goes with no control_image"
    if task == "inpainting" and not parameters.image:
        yield "image", "is needed with a mask_image"
    if task != "edit" and len(parameters.image) > 1:
        yield "image", f"has {len(parameters.image)} images, and {task} takes one"
    if parameters.strength is None:
        return
    if task not in WITH_STRENGTH:
        yield "strength", f"is for {' and '.join(WITH_STRENGTH)}, and this request asks for {task}"
    elif fault_of_strength := strength_fault(parameters.strength, parameters.num_inference_steps):
        yield "strength", fault_of_strength


def _not_offered(task: PipelineTask, offered: Sequence[PipelineTask], offers: str) -> tuple[str, str]:
    match task:
        case "control":
            return "control_image", f"is for control, and {offers}"
        case "inpainting":
            return "mask_image", f"is for inpainting, and {offers}"
        case "text-to-image":
            has_other_images = any(one not in ("text-to-image", "control") for one in offered)
            return "image" if has_other_images else "control_image", f"is needed: {offers}"
        case _ if "inpainting" in offered:
            return "mask_image", f"is needed with an image: {offers}"
        case _:
            return "image", f"is for image-to-image or edit, and {offers}"


def strength_fault(strength: float, num_inference_steps: int) -> str | None:
    """What is wrong with a strength so small that no step is left, with the least that leaves one."""
    if num_steps_at(strength, num_inference_steps) >= 1:
        return None
    steps = "1 step" if num_inference_steps == 1 else f"{num_inference_steps} steps"
    return f"with {steps} at least {least_strength(num_inference_steps):g}"


def least_strength(num_inference_steps: int) -> float:
    """The least strength that leaves one of the steps, to four decimals."""
    return math.ceil(10_000 / num_inference_steps) / 10_000


def num_steps_at(strength: float, num_inference_steps: int) -> int:
    """How many of the steps are left at this strength, as diffusers' `get_timesteps` counts them."""
    return min(int(num_inference_steps * strength), num_inference_steps)
