"""Builds pipelines for further tasks from the modules of a loaded pipeline, with diffusers' own classes.

Owns which class draws a task for a given class, and how it is built without a second set of weights. It does
not know which tasks the model offers, nor how a request becomes a call.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers

from catalogue.pipeline_tasks import PIPELINE_TASKS, PipelineTask
from engine.errors import LoadError
from engine.pipelines.pipeline_model import not_given
from engine.pipelines.pipeline_task import own_tasks, refusal_of

WORDS: Mapping[PipelineTask, str] = {
    "text-to-image": "",
    "image-to-image": "Img2Img",
    "inpainting": "Inpaint",
    "control": "ControlNet",
}
"""The word for each task in diffusers' class names."""
MAPPINGS: Mapping[PipelineTask, str] = {
    "text-to-image": "AUTO_TEXT2IMAGE_PIPELINES_MAPPING",
    "image-to-image": "AUTO_IMAGE2IMAGE_PIPELINES_MAPPING",
    "inpainting": "AUTO_INPAINT_PIPELINES_MAPPING",
}
"""diffusers' tables of classes by kind of model, for classes that are not found by their names."""


def class_for(pipeline_class: Any, task: PipelineTask) -> Any | None:
    """Return the class that draws `task` with `pipeline_class`'s components, maybe the same one, or None."""
    if task in own_tasks(pipeline_class):
        return pipeline_class
    if own_tasks(pipeline_class) == ("control",):
        return None  # its denoiser may take the control image as additional channels
    for find in (_class_named, _class_mapped):  # the second imports every pipeline, so it is not called first
        found = find(pipeline_class, task)
        if inspect.isclass(found) and _draws(found, task):
            return found
    return None


def _class_named(pipeline_class: Any, task: PipelineTask) -> Any | None:
    if task not in WORDS:
        return None
    base = pipeline_class.__name__.removesuffix("Pipeline")
    for word in filter(None, WORDS.values()):
        base = base.removesuffix(word)
    return getattr(diffusers, f"{base}{WORDS[task]}Pipeline", None)


def _class_mapped(pipeline_class: Any, task: PipelineTask) -> Any | None:
    if task not in MAPPINGS:
        return None
    # Imported here because it imports every pipeline of diffusers, which takes a second.
    from diffusers.pipelines import auto_pipeline

    mappings = {one: getattr(auto_pipeline, name) for one, name in MAPPINGS.items()}
    keys = [key for one in mappings.values() for key, known in one.items() if known is pipeline_class]
    return next((mappings[task][key] for key in keys if key in mappings[task]), None)


def _draws(pipeline_class: Any, task: PipelineTask) -> bool:
    is_a_class = issubclass(pipeline_class, diffusers.DiffusionPipeline)
    return is_a_class and refusal_of(pipeline_class) is None and own_tasks(pipeline_class)[0] == task


def tasks_beside(pipeline_class: Any) -> tuple[PipelineTask, ...]:
    """Return the tasks that a model of this class can offer without further weights, its own tasks first."""
    own = own_tasks(pipeline_class)
    others = [task for task in PIPELINE_TASKS if task not in (*own, "control")]
    return (*own, *(task for task in others if class_for(pipeline_class, task) is not None))


def pipelines_for(
    pipeline: Any, tasks: Sequence[PipelineTask], controlnet: Any = None
) -> dict[PipelineTask, Any]:
    """Return a pipeline for each task, built from the modules of `pipeline`; `pipeline` itself if it fits.

    Raises `LoadError` for a task that diffusers has no class for.
    """
    own_class = type(pipeline)
    found: dict[PipelineTask, Any] = {}
    for task in tasks or own_tasks(own_class)[:1]:
        task_class = class_for(own_class, task)
        if task_class is None:
            can = ", ".join(repr(one) for one in tasks_beside(own_class))
            raise LoadError(f"tasks: a {own_class.__name__} cannot offer {task!r}: set tasks = [{can}]")
        if task_class is own_class:
            found[task] = pipeline
            if task == "control" and controlnet is not None:
                raise LoadError(f"controlnet: a {own_class.__name__} has its own: remove the entry")
            continue
        if task == "control" and controlnet is None:
            raise LoadError("tasks: 'control' needs a ControlNet: set controlnet to its folder or hub id")
        given = {"controlnet": controlnet} if task == "control" else {}
        found[task] = _made(task_class, pipeline, given)
    return found


def _made(pipeline_class: Any, pipeline: Any, given: Mapping[str, Any]) -> Any:
    """Return a pipeline of that class with the components and configuration of `pipeline`.

    diffusers' `from_pipe` would cast all components to one dtype, and a VAE may have another.
    """
    available = {**not_given(pipeline_class), **pipeline.config, **pipeline.components, **given}
    parameters = inspect.signature(pipeline_class.__init__).parameters.values()
    wanted = [one for one in parameters if one.name != "self" and one.kind is not one.VAR_KEYWORD]
    missing = [one.name for one in wanted if one.default is one.empty and one.name not in available]
    if missing:
        raise LoadError(
            f"tasks: a {pipeline_class.__name__} needs a {' and a '.join(missing)}, which this model lacks"
        )
    made = pipeline_class(**{one.name: available[one.name] for one in wanted if one.name in available})
    made.set_progress_bar_config(disable=True)
    return made
