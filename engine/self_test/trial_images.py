"""Draws the requests of a self-test through a separate engine, and compares images.

It knows requests and images, but not the conclusions from a comparison.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf

import numpy as np

from catalogue.determinism import DeterminismLevel
from catalogue.step_cache import NUM_FIRST_FULL_STEPS
from engine.engine import Engine
from engine.errors import EngineError, RequestInvalid
from engine.generation import Handle
from engine.loading.compilation import Size
from engine.pipelines.pipeline_model import PipelineModel
from engine.request import GeneratedImage, GenerationRequest, SchedulerSpec

MODEL = "tested"
NUM_STEPS = (4, 2, 3, 5)
SCALES = (4.0, 1.0, 7.0, 2.5)
PROMPTS = ("a self-test", "a red heart on a white background", "", "two blue stars and a ring beside them")
MAX_DIFFERENCE = 1
"""Largest allowed difference of a pixel value (0 to 255) between an image drawn alone and in a mixed batch.

A model whose images differ by more draws one request at a time.
"""


def square(model: PipelineModel, max_pixels: int) -> Size:
    """Return the largest square of at most `max_pixels` pixels that the model can draw."""
    multiple = model.side_multiple
    side = max(multiple, math.isqrt(max_pixels) // multiple * multiple)
    return side, side


def plain_request(number: int, size: tuple[int, int], scheduler: SchedulerSpec) -> GenerationRequest:
    """Return request `number`; each number has its own prompt, steps, scale and seed."""
    return GenerationRequest(
        MODEL, PROMPTS[number], *size, NUM_STEPS[number], SCALES[number], seed=number, scheduler=scheduler
    )


def cached_request(request: GenerationRequest) -> GenerationRequest:
    """Return the request with a step cache, and with enough steps for one of them to be a cached step."""
    return replace(request, step_cache=2, num_inference_steps=NUM_FIRST_FULL_STEPS + 3)


def drawn(
    model: PipelineModel, row_limits: Mapping[int, int], requests: Sequence[GenerationRequest]
) -> list[np.ndarray | EngineError]:
    """Return the pixels, or the error, of each request; one request joins the engine at each tick."""
    return [pixels_of(outcome) for outcome in outcomes_of(model, row_limits, requests)]


def outcomes_of(
    model: PipelineModel,
    row_limits: Mapping[int, int],
    requests: Sequence[GenerationRequest],
    determinism: DeterminismLevel = "exact",
) -> list[GeneratedImage | EngineError]:
    """Return the image, or the error, of each request; one joins at each tick of an engine."""
    # The clock is frozen; otherwise the machine's speed would decide which requests share a batch.
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
    """Return the pixels of an image; return an error unchanged."""
    return outcome if isinstance(outcome, EngineError) else outcome.pixels


def shared_a_pass(outcomes: Sequence[GeneratedImage | EngineError]) -> bool:
    """Whether all outcomes are images and some shared a forward pass; else they say nothing about batches."""
    images = [outcome for outcome in outcomes if isinstance(outcome, GeneratedImage)]
    return len(images) == len(outcomes) and any(image.mean_step_batch > 1 for image in images)


def difference(some: Sequence[np.ndarray | EngineError], others: Sequence[np.ndarray | EngineError]) -> float:
    """Return the largest difference of a pixel value (0 to 255); infinite if one of two images is missing."""
    worst = 0.0
    for one, other in zip(some, others, strict=True):
        if isinstance(one, EngineError) and isinstance(other, EngineError):
            continue  # it fails in both cases
        if isinstance(one, EngineError) or isinstance(other, EngineError) or one.shape != other.shape:
            return inf
        worst = max(worst, float(np.abs(one.astype(int) - other.astype(int)).max(initial=0)))
    return worst
