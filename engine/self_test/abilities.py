"""Finds out which features a loaded model supports: guidance cutoff, step cache, text padding.

Each feature is tried on calls of the model; the name of its class does not matter. It does not know
determinism levels.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.device_work import IMPOSSIBLE
from engine.pipelines.components import is_denoiser
from engine.pipelines.parked_call import PER_ROW_NUMBERS
from engine.pipelines.pipeline_call import PipelineCall
from engine.pipelines.pipeline_model import PipelineModel
from engine.pipelines.steady_stack import on_steady_stack
from engine.pipelines.text_padding import TextPadding
from engine.policy.buckets import BUCKET_STEP
from engine.request import GenerationRequest
from engine.runner import image_of
from engine.self_test.exact_rows import is_equal
from engine.self_test.padding_finder import find_text_padding as find_padding
from engine.self_test.time_budget import TimeBudget
from engine.self_test.trial_images import MAX_DIFFERENCE, cached_request, difference, drawn

DETERMINISTIC = (*IMPOSSIBLE, RuntimeError)
TEXTS_OF_TWO_LENGTHS = (0, 3)  # indexes of `PROMPTS`
logger = logging.getLogger(__name__)


def find_text_padding(
    model: PipelineModel,
    row_limits: Mapping[int, int],
    requests: Sequence[GenerationRequest],
    budget: TimeBudget,
) -> TextPadding | None:
    """Return how texts can be padded, found with two requests whose texts have different lengths."""
    chosen = [requests[number] for number in TEXTS_OF_TWO_LENGTHS]
    unpadded = drawn(model, row_limits, chosen)

    def is_unchanged() -> bool:
        return difference(unpadded, drawn(model, row_limits, chosen)) <= MAX_DIFFERENCE

    begin = [partial(model.begin, request) for request in chosen]
    found = on_steady_stack(find_padding)(model.exchange, begin, is_unchanged, budget)
    if found is not None:
        logger.info("texts of a %s are padded to one of these lengths: %s", model.class_name, found.lengths)
    return found


def find_abilities(model: PipelineModel, request: GenerationRequest) -> None:
    """Set on the model which features its requests may use: guidance cutoff, step cache, several images."""
    model.exchange.takes_float_timesteps = _takes_float_timesteps(model, request)
    model.can_cache_steps = model.partial_forward is not None
    if model.can_cache_steps:
        cached = drawn(model, {request.width * request.height: BUCKET_STEP}, [cached_request(request)])[0]
        model.can_cache_steps = isinstance(cached, np.ndarray)
    _find_rows_of_guidance(model, request)
    _find_limits_of_tasks(model, request)
    model.takes_several_images = "edit" in model.tasks and _takes_several_images(model, request)


def _find_limits_of_tasks(model: PipelineModel, request: GenerationRequest) -> None:
    """Set the tasks, except the first, in which guidance cannot be cut off or steps cannot be cached."""
    model.uncut_tasks, model.uncached_tasks = (), ()
    row_limits = {request.width * request.height: BUCKET_STEP}
    for task in model.tasks[1:]:
        trial = model.trial(request, task)
        if model.can_cut_guidance and not _is_cut(model, trial):
            model.uncut_tasks += (task,)
        if model.can_cache_steps:
            cached = drawn(model, row_limits, [cached_request(trial)])[0]
            if not isinstance(cached, np.ndarray):
                model.uncached_tasks += (task,)


@on_steady_stack
@torch.inference_mode()
def _takes_float_timesteps(model: PipelineModel, request: GenerationRequest) -> bool:
    """Whether the denoiser gives the same output for float timesteps as for integers.

    If so, requests whose schedulers have integer timesteps can share a pass with others.
    """
    model.exchange.takes_float_timesteps = False
    call = model.begin(request)
    try:
        model.exchange.run_to_denoiser(call)
        if call.parked is None:
            return False
        name, arguments = call.parked.name, call.parked.arguments()
        whole = {
            argument: value.round().to(torch.int64)
            for argument, value in arguments.items()
            if argument in PER_ROW_NUMBERS and isinstance(value, Tensor)
        }
        as_float = {argument: value.to(torch.float32) for argument, value in whole.items()}
        outputs = [model.exchange.forward(name, {**arguments, **one}) for one in (whole, as_float)]
        return is_equal(*outputs)
    except DETERMINISTIC as error:  # for example because the denoiser uses timesteps as an index
        logger.debug("a %s needs integer timesteps: %s", model.class_name, error)
        return False
    finally:
        call.end()


@on_steady_stack
@torch.inference_mode()
def _find_rows_of_guidance(model: PipelineModel, request: GenerationRequest) -> None:
    """Set the number of rows of a guided step, and whether guidance can be cut off.

    It can if a guided step has two rows and an image with a cutoff at its first step equals that of scale 1.
    """
    call = model.begin(request)
    rows = []
    while call.parked is not None:
        if is_denoiser(call.parked.name):
            rows.append(call.parked.num_rows)
        if model.exchange.run([call]):
            break
    call.end()
    model.num_guided_rows = max(rows, default=1)
    model.can_cut_guidance = model.num_guided_rows == 2 and rows[-1] == 2
    if model.can_cut_guidance:
        model.can_cut_guidance = _is_cut(model, request)


@on_steady_stack
@torch.inference_mode()
def _is_cut(model: PipelineModel, request: GenerationRequest) -> bool:
    """Whether the image with a cutoff at the first step equals that of scale 1, within `MAX_DIFFERENCE`."""
    cut = _drawn_by_one_call(model, model.begin(request, guided_share=0.0))
    unguided = _drawn_by_one_call(model, model.begin(replace(request, guidance_scale=1.0)))
    are_drawn = cut[0] is not None and unguided[0] is not None
    return are_drawn and difference(cut, unguided) <= MAX_DIFFERENCE


@on_steady_stack
@torch.inference_mode()
def _takes_several_images(model: PipelineModel, request: GenerationRequest) -> bool:
    """Whether a second input image of an edit changes its result and not the number of results."""
    one, both = model.trial(request, "edit"), model.trial(request, "edit", num_images=2)
    first, second = both.inputs["image"]
    other = replace(both, inputs={"image": (first, 255 - second)})
    num_rows = [_num_rows(model, each) for each in (one, both)]
    if None in num_rows or num_rows[0] != num_rows[1]:
        return False
    images = [_drawn_by_one_call(model, model.begin(each))[0] for each in (both, other)]
    return all(image is not None for image in images) and not np.array_equal(*images)


def _num_rows(model: PipelineModel, request: GenerationRequest) -> int | None:
    """Return the rows of the request's first step; None if it fails before that."""
    call = model.begin(request)
    try:
        model.exchange.run_to_denoiser(call)
        return None if call.parked is None else call.parked.num_rows
    except DETERMINISTIC as error:
        logger.debug("a %s fails with several input images: %s", model.class_name, error)
        return None
    finally:
        call.end()


def _drawn_by_one_call(model: PipelineModel, call: PipelineCall) -> list[Any]:
    """Return a list of one image, `(H, W, 3)` uint8, of a call that runs alone; `[None]` if it fails."""
    try:
        while call.parked is not None:
            if model.exchange.run([call]):
                return [None]
        return [None if call.error is not None else image_of(call.result)]
    except DETERMINISTIC as error:
        logger.debug("a trial call of a %s fails: %s", model.class_name, error)
        return [None]
    finally:
        call.end()
