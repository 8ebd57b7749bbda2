"""Draws the requests of a self-test through an engine of its own, and compares their images.

It knows requests and images, and nothing of what is concluded from them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf

import numpy as np

from engine.determinism import DeterminismLevel
from engine.engine import Engine
from engine.errors import EngineError, RequestInvalid
from engine.handle import Handle
from engine.loading.compilation import Size
from engine.partial_forwards.step_cache import NUM_FIRST_FULL_STEPS
from engine.pipelines.pipeline_model import PipelineModel
from engine.request import GeneratedImage, GenerationRequest, SchedulerSpec

MODEL = "tested"
NUM_STEPS = (4, 2, 3, 5)
SCALES = (4.0, 1.0, 7.0, 2.5)
PROMPTS = ("a self-test", "a red heart on a white background", "", "two blue stars and a ring beside them")
MAX_DIFFERENCE = 1
"""Of 255, of any pixel alone and in company: what differs by more is drawn one request at a time."""


def square(model: PipelineModel, max_pixels: int) -> Size:
    """The largest square of a class of pixels that the model can draw."""
    multiple = model.side_multiple
    side = max(multiple, math.isqrt(max_pixels) // multiple * multiple)
    return side, side


def plain_request(number: int, size: tuple[int, int], scheduler: SchedulerSpec) -> GenerationRequest:
    """The request of this number, which differs from the others in prompt, steps, scale and seed."""
    return GenerationRequest(
        MODEL, PROMPTS[number], *size, NUM_STEPS[number], SCALES[number], seed=number, scheduler=scheduler
    )


def cached_request(request: GenerationRequest) -> GenerationRequest:
    """The same with a step cache, and with as many steps as make one of them shallow."""
    return replace(request, step_cache=2, num_inference_steps=NUM_FIRST_FULL_STEPS + 3)


def drawn(
    model: PipelineModel, row_limits: Mapping[int, int], requests: Sequence[GenerationRequest]
) -> list[np.ndarray | EngineError]:
    """The pixels of each, as they join one by one, or its error."""
    return [pixels_of(outcome) for outcome in outcomes_of(model, row_limits, requests)]


def outcomes_of(
    model: PipelineModel,
    row_limits: Mapping[int, int],
    requests: Sequence[GenerationRequest],
    determinism: DeterminismLevel = "exact",
) -> list[GeneratedImage | EngineError]:
    """The image of each, as they join one by one, or its error; the engine works under `promise`."""
    # Its clock stands still: on a busy machine seconds would decide who meets whom.
    engine = Engine({MODEL: model}, {MODEL: row_limits}, determinism=determinism, clock=lambda: 0.0)
    handles: list[Handle | RequestInvalid] = []
    for request in requests:
        try:
            handles.append(engine.submit(request))
        except RequestInvalid as error:
            handles.append(error)
        engine.tick()
    while not engine.is_idle:
        engine.tick()
    engine.stop()
    return [handle if isinstance(handle, RequestInvalid) else _outcome(handle) for handle in handles]


def _outcome(handle: Handle) -> GeneratedImage | EngineError:
    error = handle.future.exception(timeout=0)
    return error if isinstance(error, EngineError) else handle.future.result()


def pixels_of(outcome: GeneratedImage | EngineError) -> np.ndarray | EngineError:
    """The pixels of an image; an error as it is."""
    return outcome if isinstance(outcome, EngineError) else outcome.pixels


def have_met(outcomes: Sequence[GeneratedImage | EngineError]) -> bool:
    """Whether all of them are images, and some shared a forward pass: else they say nothing of company."""
    images = [outcome for outcome in outcomes if isinstance(outcome, GeneratedImage)]
    return len(images) == len(outcomes) and any(image.mean_step_batch > 1 for image in images)


def difference(some: Sequence[np.ndarray | EngineError], others: Sequence[np.ndarray | EngineError]) -> float:
    """The largest of any pixel, of 255; infinite where an image is missing on one side alone."""
    worst = 0.0
    for one, other in zip(some, others, strict=True):
        if isinstance(one, EngineError) and isinstance(other, EngineError):
            continue  # the same in company as alone
        if isinstance(one, EngineError) or isinstance(other, EngineError) or one.shape != other.shape:
            return inf
        worst = max(worst, float(np.abs(one.astype(int) - other.astype(int)).max(initial=0)))
    return worst
