"""The pipeline tasks (text-to-image, inpainting and others), and the rule that gives a request its task.

Owns which parameters imply which task, and the faults of parameters that fit no task of the model. The web
and the engine share it. It knows no pipeline, and no file behind an id.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from catalogue.parameters import Parameters

PipelineTask = Literal["text-to-image", "image-to-image", "inpainting", "edit", "control"]
PIPELINE_TASKS: tuple[PipelineTask, ...] = get_args(PipelineTask)
WITH_STRENGTH = ("image-to-image", "inpainting")
"""Tasks that start from an image with added noise; `strength` sets how much."""


def task_of(parameters: Parameters, offered: Sequence[PipelineTask]) -> PipelineTask:
    """The task that these parameters ask for, which may be one that the model does not offer.

    With an `image` the task is `edit` if the model offers it; if the model also offers image-to-image, a
    `strength` chooses image-to-image.
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
    """The parameters that fit no task of the model, and why; none if a task fits."""
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
    """Why a strength leaves no step, with the least strength that leaves one; None if it leaves a step."""
    if num_steps_at(strength, num_inference_steps) >= 1:
        return None
    steps = "1 step" if num_inference_steps == 1 else f"{num_inference_steps} steps"
    return f"with {steps} at least {least_strength(num_inference_steps):g}"


def least_strength(num_inference_steps: int) -> float:
    """The least strength that leaves a step, to four decimals."""
    return math.ceil(10_000 / num_inference_steps) / 10_000


def num_steps_at(strength: float, num_inference_steps: int) -> int:
    """How many steps run at this strength, counted as in diffusers' `get_timesteps`."""
    return min(int(num_inference_steps * strength), num_inference_steps)
