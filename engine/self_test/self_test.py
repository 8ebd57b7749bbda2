"""Finds out when a model is loaded whether its requests may share forward passes, and its determinism level.

Draws requests with different prompts, steps, scales and schedulers alone and in a mixed batch, through the
engine, and compares the images; the name of the pipeline class does not matter. It knows requests and images,
but no tensors.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np

from catalogue.determinism import DETERMINISM_LEVELS, DeterminismLevel
from catalogue.parameters import Value
from catalogue.pipeline_tasks import PipelineTask, task_of
from engine.errors import EngineError
from engine.loading.compilation import Size
from engine.pipelines.pipeline_model import PipelineModel
from engine.pipelines.steady_stack import on_steady_stack
from engine.policy.buckets import MULTIPLES_OF_FOUR, Buckets, BucketsByShape
from engine.request import GeneratedImage, GenerationRequest, SchedulerSpec
from engine.self_test.abilities import find_abilities, find_text_padding
from engine.self_test.exact_rows import exact_row_counts, largest_without_gap
from engine.self_test.time_budget import TimeBudget
from engine.self_test.trial_images import (
    MAX_DIFFERENCE,
    SCALES,
    cached_request,
    difference,
    drawn,
    outcomes_of,
    pixels_of,
    plain_request,
    shared_a_pass,
    square,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Offer:
    """The part of what a model offers to requests that the self-test tries."""

    schedulers: tuple[SchedulerSpec, ...] = (SchedulerSpec("default"),)  # the default first
    sizes: tuple[Size, ...] = ()  # the default sizes of its tiers
    trial_values: Mapping[str, Value] = field(default_factory=dict)  # values other than the default
    max_num_inference_steps: int = 1000
    tasks: tuple[PipelineTask, ...] = ()  # the tasks of the model


@dataclass(frozen=True)
class SelfTest:
    """The determinism level of one model on this device, with the row limits and buckets it holds under."""

    determinism: DeterminismLevel
    row_limits: Mapping[int, int]  # max_pixels -> rows
    buckets: BucketsByShape


class Comparison(IntEnum):
    """How images drawn in a mixed batch compare with the same images drawn alone."""

    EQUAL = 0
    SIMILAR = 1  # within `MAX_DIFFERENCE`
    UNKNOWN = 2  # within `MAX_DIFFERENCE`, but no time was left, or no images shared a pass
    DIFFERENT = 3


@on_steady_stack
def find_determinism(
    model: PipelineModel,
    row_limits: Mapping[int, int],
    offer: Offer,
    budget: TimeBudget,
    *,
    is_compiled: bool = False,
    can_pad_texts: bool = True,
) -> SelfTest:
    """Compare images drawn alone and in mixed batches, for each key of `row_limits` within the budget.

    The smallest key is always tested. `model.runs_alone` is set if an image of a mixed batch differs by more
    than `MAX_DIFFERENCE` from one of a call without other batch members and without padding. The determinism
    level is `within 1/255` if images still differ under the row limits and buckets below, if no requests
    shared a pass or some failed, or if the budget was spent.
    `model.buckets` gets the row counts at which a row has the same bits as in a pass of 4 rows. All counts
    are tried, or 2 and the multiples of 4 if a step is slow or the model `is_compiled`. The row limit is
    lowered to the largest exact count below which no multiple of 4 is missing, if that is at least half of
    the limit; else the level is `exact within a bucket`. If memory runs out above 4 rows, the limit is the
    largest row count that fits. `model.text_padding` is set if texts of different lengths can be padded; if
    images of a mixed batch differ with it, everything is tested again without padding.
    """
    determinism = 0  # an index of `DETERMINISM_LEVELS`
    is_repeatable = True
    limits = dict(row_limits)
    model.buckets = {}
    model.runs_alone = True
    model.text_padding = None
    smallest = square(model, min(limits))
    find_abilities(model, _requests(model, smallest, offer)[0])
    if can_pad_texts:
        model.text_padding = find_text_padding(model, row_limits, _requests(model, smallest, offer), budget)
    for max_pixels in sorted(row_limits):
        if max_pixels != min(row_limits) and budget.is_spent():
            determinism = 2
            break
        in_class = {max_pixels: row_limits[max_pixels]}
        sizes = (square(model, max_pixels), *_sizes_between(offer.sizes, row_limits, max_pixels))
        by_size = [_requests(model, size, offer) for size in dict.fromkeys(sizes)]
        if max_pixels != min(row_limits):  # the kinds of requests were all tried at the smallest key
            num_further = len(model.tasks) - 1
            by_size = [[*one[:2], one[len(SCALES)], *one[len(one) - num_further :]] for one in by_size]
        comparison = Comparison.EQUAL
        for requests in by_size:
            if requests is not by_size[0] and budget.is_spent():
                comparison = Comparison.UNKNOWN
                break
            compared, is_same = _compared(model, in_class, requests, budget)
            is_repeatable = is_repeatable and is_same
            comparison = max(comparison, compared)
            if compared is Comparison.DIFFERENT and model.text_padding is not None:
                return find_determinism(
                    model, row_limits, offer, budget, is_compiled=is_compiled, can_pad_texts=False
                )
            if compared is Comparison.DIFFERENT:
                model.runs_alone, model.buckets = True, {}
                logger.info(
                    "images of a %s depend on other batch members: it draws one at a time", model.class_name
                )
                level = DETERMINISM_LEVELS[0 if is_repeatable else -1]
                return SelfTest(level, dict(row_limits), {})
        if determinism == 2 or comparison is Comparison.UNKNOWN:
            determinism = 2
            continue
        found, limits[max_pixels] = _try_rows(
            model, in_class, by_size, comparison, budget, is_compiled=is_compiled
        )
        determinism = max(determinism, found)
    if determinism == 2:
        model.buckets = {}
    if determinism == 1:
        model.buckets = dict.fromkeys(model.buckets, MULTIPLES_OF_FOUR)
    return SelfTest(DETERMINISM_LEVELS[determinism if is_repeatable else -1], limits, model.buckets)


def _try_rows(
    model: PipelineModel,
    in_class: Mapping[int, int],
    by_size: Sequence[Sequence[GenerationRequest]],
    comparison: Comparison,
    budget: TimeBudget,
    *,
    is_compiled: bool,
) -> tuple[int, int]:
    """Return a determinism level (an index of `DETERMINISM_LEVELS`) and a row limit; set the buckets.

    `by_size` has the requests of each size, the square first. If their images were only `SIMILAR`, they are
    drawn in a mixed batch again under the new row limit and buckets.
    """
    ((max_pixels, max_rows),) = in_class.items()
    num_further = len(model.tasks) - 1
    # The unguided request, of one row, first; further tasks can have passes of other shapes or modules.
    requests = [*by_size[0][1::-1], *by_size[0][len(by_size[0]) - num_further :]]
    counts = exact_row_counts(model, requests, max_rows, budget, is_compiled=is_compiled)
    if counts is None:
        return 2, max_rows
    found, max_rows = counts
    num_exact_rows = largest_without_gap(found)
    determinism, buckets = 0, Buckets(tuple(sorted(found)))
    if 2 * num_exact_rows >= max_rows:
        max_rows = min(max_rows, num_exact_rows)
    else:
        determinism, buckets = 1, MULTIPLES_OF_FOUR
    pixels = model.pixels_per_latent
    shape = (requests[0].height // pixels, requests[0].width // pixels)
    model.buckets = {**model.buckets, shape: buckets}
    if comparison is Comparison.SIMILAR:
        shapes = by_size[:1] if determinism == 1 else by_size  # a strict request of another shape runs alone
        again = [_compared_again(model, {max_pixels: max_rows}, one, budget, determinism) for one in shapes]
        determinism = determinism if max(again) is Comparison.EQUAL else 2
    return determinism, max_rows


def _sizes_between(sizes: Sequence[Size], row_limits: Mapping[int, int], max_pixels: int) -> list[Size]:
    """Return the sizes whose smallest sufficient key of `row_limits` is `max_pixels`."""
    smaller = max((limit for limit in row_limits if limit < max_pixels), default=0)
    return [(width, height) for width, height in sizes if smaller < width * height <= max_pixels]


def _requests(model: PipelineModel, size: Size, offer: Offer) -> list[GenerationRequest]:
    """Return requests of one size that may share passes, each of a different kind.

    The first ones are of the model's first task, the last ones of each further task.
    """
    plain = [plain_request(number, size, offer.schedulers[0]) for number in range(len(SCALES))]
    first = plain[0]
    # With the prompt of the first request, since texts of different lengths may not share a pass.
    requests = [*plain, replace(first, seed=len(plain))]
    if model.can_cut_guidance:
        requests.append(replace(first, seed=5, guidance_cutoff=0.5))
    if model.can_cache_steps:
        requests.append(cached_request(first))
    if len(offer.schedulers) > 1:
        requests.append(replace(first, seed=6, scheduler=offer.schedulers[1]))
    if offer.trial_values:
        requests.append(first.changed(seed=7, pipeline_parameters=dict(offer.trial_values)))
    usual, *further = model.tasks
    tasks = [usual] * len(requests)
    for number, task in enumerate(further):
        more = model.taken_beside(usual, task, offer.trial_values)
        if more:
            requests.append(first.changed(seed=20 + number, pipeline_parameters=more))
            tasks.append(task)
    requests += [replace(first, seed=10 + number) for number in range(len(further))]
    tasks += further
    most = offer.max_num_inference_steps
    limited = [replace(one, num_inference_steps=min(one.num_inference_steps, most)) for one in requests]
    return [model.trial(one, task) for one, task in zip(limited, tasks, strict=True)]


def _compared(
    model: PipelineModel,
    row_limits: Mapping[int, int],
    requests: Sequence[GenerationRequest],
    budget: TimeBudget,
) -> tuple[Comparison, bool]:
    """Compare images of a mixed batch with images drawn alone; sets `model.runs_alone`.

    Returns the comparison, and whether an image drawn twice is the same.
    """
    requests, references, is_repeatable = _references(model, row_limits, requests)
    model.runs_alone = False
    outcomes = outcomes_of(model, row_limits, requests)
    if difference(references, [pixels_of(outcome) for outcome in outcomes]) > MAX_DIFFERENCE:
        return Comparison.DIFFERENT, is_repeatable
    return _compared_with_alone(model, row_limits, requests, outcomes, budget), is_repeatable


def _references(
    model: PipelineModel, row_limits: Mapping[int, int], requests: Sequence[GenerationRequest]
) -> tuple[list[GenerationRequest], list[np.ndarray | EngineError], bool]:
    """Draw each request alone and without padding; also return whether an image drawn twice is the same.

    Returns the requests and their images. A kind of request that fails, other than the plain ones, is left
    out, because it says nothing about batches.
    """
    text_padding = model.text_padding
    model.runs_alone, model.text_padding = True, None
    images = drawn(model, row_limits, requests)
    is_repeatable = difference(images[:1], drawn(model, row_limits, requests[:1])) == 0
    model.text_padding = text_padding
    for request, image in zip(requests[len(SCALES) + 1 :], images[len(SCALES) + 1 :], strict=True):
        if isinstance(image, EngineError):
            logger.warning(
                "a %s cannot draw with %s: %s", model.class_name, _differences(requests[0], request), image
            )
    compared = [
        (request, image)
        for index, (request, image) in enumerate(zip(requests, images, strict=True))
        if index <= len(SCALES) or isinstance(image, np.ndarray)
    ]
    return [request for request, _ in compared], [image for _, image in compared], is_repeatable


def _differences(plain: GenerationRequest, request: GenerationRequest) -> str:
    """Return, as text, the fields in which a request differs from a plain one."""
    changed = [
        f"{name} {getattr(request, name)!r}"
        for name in ("guidance_cutoff", "step_cache")
        if getattr(request, name) != getattr(plain, name)
    ]
    changed += [f"an image for {task_of(request.parameters, ())}"] * (
        request.inputs.keys() != plain.inputs.keys()
    )
    changed += [f"scheduler {request.parameters.scheduler!r}"] * (request.scheduler != plain.scheduler)
    changed += [f"{name} {value!r}" for name, value in request.parameters.pipeline_parameters.items()]
    return ", ".join(changed)


def _compared_again(
    model: PipelineModel,
    row_limits: Mapping[int, int],
    requests: Sequence[GenerationRequest],
    budget: TimeBudget,
    determinism: int,
) -> Comparison:
    """Compare again under the model's buckets; for `exact within a bucket` the requests are strict."""
    requests = [request.as_strict() for request in requests] if determinism == 1 else requests
    outcomes = outcomes_of(model, row_limits, requests, DETERMINISM_LEVELS[determinism])
    return _compared_with_alone(
        model, row_limits, requests, outcomes, budget, DETERMINISM_LEVELS[determinism]
    )


def _compared_with_alone(
    model: PipelineModel,
    row_limits: Mapping[int, int],
    requests: Sequence[GenerationRequest],
    outcomes: Sequence[GeneratedImage | EngineError],
    budget: TimeBudget,
    determinism: DeterminismLevel = "exact",
) -> Comparison:
    """Compare the outcomes of a mixed batch with those of the engine when it draws each request alone."""
    if not shared_a_pass(outcomes):
        return Comparison.UNKNOWN
    for request, outcome in zip(requests, outcomes, strict=True):
        if budget.is_spent():
            return Comparison.UNKNOWN
        alone = outcomes_of(model, row_limits, [request], determinism)
        if difference([pixels_of(alone[0])], [pixels_of(outcome)]):
            return Comparison.SIMILAR
    return Comparison.EQUAL
