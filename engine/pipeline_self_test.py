"""Finds out when a pipeline is loaded whether its requests may share forward passes, and what that promises.

Requests of differing prompts, steps and scales are drawn alone and in company, through the engine, and the
images are compared. What a class of pipelines is called decides nothing. It knows requests and images, and
none of the tensors between.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.attempt import unless_out_of_memory
from engine.buckets import BUCKET_STEP, MULTIPLES_OF_FOUR, Buckets
from engine.engine import Engine
from engine.errors import EngineError, LoadError, NumericError, OutOfMemory, RequestInvalid
from engine.exchange import is_denoiser
from engine.first_image import square
from engine.handle import Handle
from engine.parked_call import ParkedCall
from engine.pipeline_call import PipelineCall
from engine.pipeline_model import PipelineModel
from engine.request import GeneratedImage, GenerationRequest, SchedulerSpec
from engine.runner import IMPOSSIBLE
from engine.self_test import PROMISES, SelfTest, largest_in_unison
from engine.steady_stack import on_steady_stack
from engine.step_cache import NUM_FIRST_FULL_STEPS
from engine.time_budget import TimeBudget
from engine.walks import fitting

DETERMINISTIC = (*IMPOSSIBLE, RuntimeError)
logger = logging.getLogger(__name__)

MAX_DIFFERENCE = 1
"""Of 255, of any pixel alone and in company: what differs by more is drawn one request at a time."""
MODEL = "tested"
NUM_STEPS = (4, 2, 3, 5)
SCALES = (4.0, 1.0, 7.0, 2.5)
PROMPTS = ("a self-test", "a red heart on a white background", "", "two blue stars and a ring beside them")


@on_steady_stack
def find_promise(
    model: PipelineModel, row_limits: Mapping[int, int], scheduler: SchedulerSpec, budget: TimeBudget
) -> SelfTest:
    """Compare images alone and in company, in each class of pixels for which the budget lasts.

    The smallest class is always tried, since without it nothing is known: `model.runs_alone` is set where its
    images in company differ by more than `MAX_DIFFERENCE` from those of calls that have no company and no
    padding. Images that differ by less, requests of which none shared a pass or some failed, and classes that
    were not tried, make the promise `within 1/255`.
    `model.buckets` gets the row counts at which a row has the bits that it has among 4. Where these end
    before the cap, it is lowered, or the promise is `exact within a bucket`, as by `engine.self_test`. Where
    memory runs out above 4 rows, the cap is the largest number of rows that fitted.
    """
    weakest, is_repeatable = 0, True  # of `PROMISES`
    limits = dict(row_limits)
    model.buckets = {}
    for max_pixels in sorted(row_limits):
        if max_pixels != min(row_limits) and budget.is_spent():
            weakest = 2
            break
        requests = [_request(number, square(model, max_pixels), scheduler) for number in range(len(SCALES))]
        # Of one prompt with the first: texts of other lengths may have no pass to share.
        requests.append(replace(requests[0], seed=len(requests)))
        in_class = {max_pixels: row_limits[max_pixels]}
        model.runs_alone = True
        if max_pixels == min(row_limits):
            model.can_cache_steps = model.walk is not None
            cached = _drawn(model, in_class, [_cached(requests[0])])[0]
            model.can_cache_steps = model.can_cache_steps and not isinstance(cached, EngineError)
        if model.can_cache_steps:
            requests.append(_cached(requests[0]))
        bare = _drawn(model, in_class, requests)
        is_repeatable = is_repeatable and _difference(bare[:1], _drawn(model, in_class, requests[:1])) == 0
        model.runs_alone = False
        outcomes = _outcomes(model, in_class, requests)
        together = [_pixels(outcome) for outcome in outcomes]
        if _difference(bare, together) > MAX_DIFFERENCE:
            model.runs_alone = True
            break
        if max_pixels == min(row_limits):
            _find_rows_of_guidance(model, requests[0])
        alone = [_drawn(model, in_class, [request])[0] for request in requests]
        if _difference(alone, together) or not _have_met(outcomes):
            weakest = 2
            continue
        counts = [_exact_row_counts(model, request, row_limits[max_pixels]) for request in requests[:2]]
        found = set.intersection(*(exact for exact, _ in counts))
        max_rows = limits[max_pixels] = min(num_rows_that_fit for _, num_rows_that_fit in counts)
        side = square(model, max_pixels)[0] // model.pixels_per_latent
        model.buckets = {**model.buckets, (side, side): Buckets(tuple(sorted(found)))}
        num_exact_rows = largest_in_unison(found)
        if 2 * num_exact_rows >= max_rows:
            limits[max_pixels] = min(max_rows, num_exact_rows)
        else:
            weakest = max(weakest, 1)
            model.buckets = {**model.buckets, (side, side): MULTIPLES_OF_FOUR}
    if not is_repeatable:
        return SelfTest("not repeatable", limits, model.buckets)
    if model.runs_alone:
        logger.info("images of a %s depend on their company: it draws one at a time", model.class_name)
        return SelfTest("exact", limits, model.buckets)
    return SelfTest(PROMISES[weakest], limits, model.buckets)


@on_steady_stack
def check_image(
    model: PipelineModel,
    row_limits: Mapping[int, int],
    *,
    scheduler: SchedulerSpec,
    size: tuple[int, int],
    default_steps: int,
) -> np.ndarray:
    """Draw one image of `size`, its width and height; raises `LoadError` unless it is finite and as large.

    A few steps are enough for most; an image that is not finite after these is drawn again with as many as a
    request has by default.
    """
    model.runs_alone = True  # until more is known
    pixels: np.ndarray | EngineError = NumericError()
    for num_steps in sorted({min(min(NUM_STEPS), default_steps), default_steps}):
        request = replace(_request(0, size, scheduler), num_inference_steps=num_steps)
        pixels = _drawn(model, row_limits, [request])[0]
        if not isinstance(pixels, NumericError):
            break
    if isinstance(pixels, OutOfMemory | LoadError):
        raise pixels
    if isinstance(pixels, NumericError):
        dtype = str(model.dtype).removeprefix("torch.")
        remedy = "its weights are damaged" if dtype == "float32" else "set dtype = 'float32', or 'bfloat16'"
        raise LoadError(f"it draws no image: what it computes in {dtype} is not finite; {remedy}") from pixels
    if isinstance(pixels, EngineError):
        raise LoadError(f"it draws no image: {pixels}") from pixels
    if pixels.shape[:2] != (size[1], size[0]):
        drawn = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise LoadError(f"tiers: asked for {size[0]}x{size[1]} it draws {drawn}: give sizes that it takes")
    return pixels


def _request(number: int, size: tuple[int, int], scheduler: SchedulerSpec) -> GenerationRequest:
    return GenerationRequest(
        MODEL, PROMPTS[number], *size, NUM_STEPS[number], SCALES[number], seed=number, scheduler=scheduler
    )


def _cached(request: GenerationRequest) -> GenerationRequest:
    """The same with a step cache, and with as many steps as make one of them shallow."""
    return replace(request, step_cache=2, num_inference_steps=NUM_FIRST_FULL_STEPS + 3)


def _drawn(
    model: PipelineModel, row_limits: Mapping[int, int], requests: Sequence[GenerationRequest]
) -> list[np.ndarray | EngineError]:
    """The pixels of each, as they join one by one, or its error."""
    return [_pixels(outcome) for outcome in _outcomes(model, row_limits, requests)]


def _outcomes(
    model: PipelineModel, row_limits: Mapping[int, int], requests: Sequence[GenerationRequest]
) -> list[GeneratedImage | EngineError]:
    # Its clock stands still: on a busy machine seconds would decide who meets whom.
    engine = Engine({MODEL: model}, {MODEL: row_limits}, promise="exact", clock=lambda: 0.0)
    handles: list[Handle] = []
    for request in requests:
        try:
            handles.append(engine.submit(request))
        except RequestInvalid as error:
            return [error] * len(requests)
        engine.tick()
    while not engine.is_idle:
        engine.tick()
    engine.stop()
    return [_outcome(handle) for handle in handles]


def _outcome(handle: Handle) -> GeneratedImage | EngineError:
    error = handle.future.exception(timeout=0)
    return error if isinstance(error, EngineError) else handle.future.result()


def _pixels(outcome: GeneratedImage | EngineError) -> np.ndarray | EngineError:
    return outcome if isinstance(outcome, EngineError) else outcome.pixels


def _have_met(outcomes: Sequence[GeneratedImage | EngineError]) -> bool:
    """Whether all of them are images, and some shared a forward pass: else they say nothing of company."""
    images = [outcome for outcome in outcomes if isinstance(outcome, GeneratedImage)]
    return len(images) == len(outcomes) and any(image.mean_step_batch > 1 for image in images)


def _difference(
    some: Sequence[np.ndarray | EngineError], others: Sequence[np.ndarray | EngineError]
) -> float:
    """The largest of any pixel, of 255; infinite where an image is missing on one side alone."""
    worst = 0.0
    for one, other in zip(some, others, strict=True):
        if isinstance(one, EngineError) and isinstance(other, EngineError):
            continue  # the same in company as alone
        if isinstance(one, EngineError) or isinstance(other, EngineError) or one.shape != other.shape:
            return inf
        worst = max(worst, float(np.abs(one.astype(int) - other.astype(int)).max(initial=0)))
    return worst


@on_steady_stack
@torch.inference_mode()
def _find_rows_of_guidance(model: PipelineModel, request: GenerationRequest) -> None:
    """Set how many rows a guided step has, and whether half of them leave where its guidance is cut off."""
    call = model.begin(replace(request, guidance_cutoff=0.5))
    rows = []
    try:
        while call.parked is not None:
            if is_denoiser(call.parked.name):
                rows.append(call.parked.num_rows)
            if model.exchange.run([call]):
                break
    except DETERMINISTIC as error:  # some of its tensors lost a row and others did not
        logger.debug("guidance of a %s cannot be cut off: %s", model.class_name, error)
    model.num_guided_rows = max(rows, default=1)
    is_through = call.parked is None and call.error is None
    model.can_cut_guidance = is_through and model.num_guided_rows == 2 and rows[-1] == 1
    call.end()


@on_steady_stack
@torch.inference_mode()
def _exact_row_counts(
    model: PipelineModel, request: GenerationRequest, max_rows: int
) -> tuple[set[int], int]:
    """The row counts, up to 4 and multiples of it, at which a row of this request has the bits of 4 rows.

    The row stands in several places, among rows of other prompts and seeds that are some steps further. The
    second number is the most rows, up to `max_rows`, that fit into memory; row counts beyond are not tried.
    """
    request = replace(request, num_inference_steps=2 * len(PROMPTS))
    others = [replace(request, prompt=text, seed=seed) for seed, text in enumerate(PROMPTS, start=10)]
    calls = [model.begin(one) for one in (request, *others)]
    try:
        for num_steps, call in enumerate(calls):
            _advance(model, call, num_steps)
        parked = [call.parked for call in calls if call.parked is not None]
        parked = [one for one in parked if one.signature == parked[0].signature]
        references = [_outputs(model, [one], BUCKET_STEP)[0] for one in parked]
        found = {*range(1, parked[0].num_rows), BUCKET_STEP}  # fewer rows than it has are not its to judge
        multiples = range(2 * BUCKET_STEP, max_rows + 1, BUCKET_STEP)
        for num_rows in (*range(parked[0].num_rows, BUCKET_STEP), *multiples):
            is_equal = unless_out_of_memory(
                partial(_are_equal, model, parked, references, num_rows), model.device
            )
            if isinstance(is_equal, OutOfMemory):
                return found, min(max_rows, max(BUCKET_STEP, num_rows - BUCKET_STEP))
            if is_equal:
                found.add(num_rows)
        return found, max_rows
    finally:
        for call in calls:
            call.end()


def _advance(model: PipelineModel, call: PipelineCall, num_steps: int) -> None:
    """Run a call to its first step, and so many further; never to its end."""
    while call.parked is not None and not is_denoiser(call.parked.name):
        model.exchange.run([call])
    for _ in range(num_steps):
        if call.num_steps is not None and call.num_steps_done < call.num_steps - 1:
            model.exchange.run([call])


def _are_equal(
    model: PipelineModel, parked: Sequence[ParkedCall], references: Sequence[Any], num_rows: int
) -> bool:
    """Whether each of the calls gets its reference among so many rows, in more than one place.

    Several calls are tried, since two orders of a sum can give one row the same bits by chance.
    """
    num_members = num_rows // parked[0].num_rows
    shifts = range(len(parked)) if num_members < BUCKET_STEP else (0, 2)
    for shift in shifts:
        numbers = [(shift + number) % len(parked) for number in range(num_members)]
        outputs = _outputs(model, [parked[number] for number in numbers], num_rows)
        if not all(
            _is_equal(references[number], output) for number, output in zip(numbers, outputs, strict=True)
        ):
            return False
    return True


def _outputs(model: PipelineModel, members: Sequence[ParkedCall], num_rows: int) -> list[Any]:
    """What must be equal wherever a row stands; with a step cache, also a shallow step and its features."""
    outputs: list[Any] = model.exchange.outputs(members, num_rows)
    if not model.can_cache_steps:
        return outputs

    def walked(arguments: dict[str, Any]) -> tuple[Tensor, ...]:
        named = fitting(model.walk, arguments)
        full, features = model.walk.predict(**named, num_deep_rows=num_rows, features=None)
        shallow, _ = model.walk.predict(**named, num_deep_rows=0, features=features)
        return full, features, shallow

    partly = model.exchange.outputs(members, num_rows, walked)
    return [(whole, *parts) for whole, parts in zip(outputs, partly, strict=True)]


def _is_equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return _is_equal(list(one.values()), list(other.values()))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    return one == other
