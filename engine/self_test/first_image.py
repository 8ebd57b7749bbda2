"""Draws one image when a model is loaded; a worker does not start with a model that cannot draw.

Owns the error that names the faulty component and the remedy. It stores nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from catalogue.pipeline_tasks import PipelineTask
from engine.device_work import IMPOSSIBLE
from engine.errors import EngineError, LoadError, NumericError, OutOfMemory
from engine.exchange import is_finite
from engine.loading.compilation import Size
from engine.pipelines.components import denoiser_among
from engine.pipelines.pipeline_model import PipelineModel
from engine.pipelines.steady_stack import on_steady_stack
from engine.request import GenerationRequest, SchedulerSpec
from engine.self_test.trial_images import NUM_STEPS, drawn, plain_request

DETERMINISTIC = (*IMPOSSIBLE, RuntimeError)
REMEDY = "the components do not fit together, use those that were published together"


@on_steady_stack
def check_image(
    model: PipelineModel,
    row_limits: Mapping[int, int],
    *,
    scheduler: SchedulerSpec,
    size: Size,
    default_steps: int,
    task: PipelineTask | None = None,
    entry: str = "tiers",
) -> np.ndarray:
    """Draw one image of `size` (width, height); raises `LoadError` unless it is finite and has that size.

    It is of `task`, by default the model's first, with generated input images if the task needs some. A few
    steps are enough for most models; an image that is not finite is drawn again with `default_steps`. `entry`
    is the setting that an error about the size names.
    """
    model.runs_alone = True  # until the self-test has run
    pixels: np.ndarray | EngineError = NumericError()
    plain = request = plain_request(0, size, scheduler)
    for num_steps in sorted({min(min(NUM_STEPS), default_steps), default_steps}):
        request = model.trial(replace(plain, num_inference_steps=num_steps), task)
        pixels = drawn(model, row_limits, [request])[0]
        if not isinstance(pixels, NumericError):
            break
    if isinstance(pixels, OutOfMemory | LoadError):
        raise pixels
    if isinstance(pixels, EngineError):
        draws = "it draws no image" if task is None else f"{entry}: it draws no image"
        raise LoadError(f"{draws}: {_why(model, request, pixels)}") from pixels
    if pixels.shape[:2] != (size[1], size[0]):
        drew = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise LoadError(
            f"{entry}: asked for {size[0]}x{size[1]} it draws {drew}: set sizes that the model supports"
        )
    return pixels


@on_steady_stack
@torch.inference_mode()
def _why(model: PipelineModel, request: GenerationRequest, failure: EngineError) -> str:
    """Return which component fails, and how: repeats the call and checks the output of each module."""
    call = model.begin(request)
    try:
        while call.parked is not None:
            component = call.parked.name.partition(".")[0]
            try:
                output = model.exchange.outputs([call.parked])[0]
            except DETERMINISTIC as error:
                said = " ".join(str(error).split())
                return f"its {model.named(component)} fails ({type(error).__name__}: {said}): {REMEDY}"
            if not is_finite(output):
                return _not_finite(model, component)
            call.go_on(output)
    finally:
        call.end()
    if isinstance(failure, NumericError):
        return _not_finite(model, "vae")
    return str(failure) if call.error is None else _misfit(model, call.error)


def _misfit(model: PipelineModel, error: Exception) -> str:
    """Return the facts that can explain an error in the pipeline's own code, between two modules."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    sentence = f"a {model.class_name} fails with its {type(model.scheduler).__name__} ({said})"
    vae = getattr(model.modules.get("vae"), "config", {})
    absent = [name for name in ("scaling_factor", "shift_factor") if name in vae and vae[name] is None]
    if absent and "NoneType" in said:
        named = model.named("vae")
        return f"{sentence}: its {named} has no {absent[0]}, use the vae that the model was published with"
    name = denoiser_among(list(model.modules)) or ""
    config: Any = model.modules[name].config
    channels = [config.get(entry) for entry in ("in_channels", "out_channels")]
    if None not in channels and "latent_channels" in vae:
        sentence += (
            f"; its {model.named(name)} takes {channels[0]} channels and gives {channels[1]},"
            f" its {model.named('vae')} has {vae['latent_channels']}"
        )
    return f"{sentence}: {REMEDY}"


def _not_finite(model: PipelineModel, component: str) -> str:
    dtype = str(model.dtype_of(component)).removeprefix("torch.")
    remedy = "its weights are damaged, or of another model"
    if dtype != "float32":
        remedy = "set dtype = 'float32', or 'bfloat16' if the device supports it"
        if component == "vae":
            remedy += ", or set force_upcast in the configuration of the vae"
    return f"the output of its {model.named(component)} in {dtype} is not finite; {remedy}"
