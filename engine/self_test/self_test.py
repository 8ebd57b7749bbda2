"""Finds out when a model is loaded whether its requests may share forward passes, and what that promises.

Requests of differing prompts, steps, scales and schedulers are drawn alone and in company, through the
engine, and the images are compared. What a class of pipelines is called decides nothing. It knows requests
and images, and none of the tensors between.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np

from catalogue.parameters import Value
from catalogue.pipeline_tasks import PipelineTask, task_of
from engine.determinism import DETERMINISM_LEVELS, DeterminismLevel, SelfTest
from engine.errors import EngineError
from engine.loading.compilation import Size
from engine.pipelines.pipeline_model import PipelineModel
from engine.pipelines.steady_stack import on_steady_stack
from engine.policy.buckets import MULTIPLES_OF_FOUR, Buckets
from engine.request import GeneratedImage, GenerationRequest, SchedulerSpec
from engine.self_test.abilities import find_abilities, find_text_padding
from engine.self_test.exact_rows import exact_row_counts, largest_in_unison
from engine.self_test.time_budget import TimeBudget
from engine.self_test.trial_images import (
    MAX_DIFFERENCE,
    SCALES,
    cached_request,
    difference,
    drawn,
    have_met,
    outcomes_of,
    pixels_of,
    plain_request,
    square,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Offer:
    """What requests may ask of a model, as far as the self-test draws it."""

    schedulers: tuple[SchedulerSpec, ...] = (SchedulerSpec("default"),)  # the default first
    sizes: tuple[Size, ...] = ()  # the default sizes of its tiers
    pipeline_parameters: Mapping[str, Value] = field(default_factory=dict)  # a value that is not the default
    max_num_inference_steps: int = 1000
    tasks: tuple[PipelineTask, ...] = ()  # those of the model


class BatchMembers(IntEnum):
    """How images that were drawn in company compare with the same images drawn alone."""

    EQUAL = 0
    SIMILAR = 1  # within `MAX_DIFFERENCE`
    UNKNOWN = 2  # within `MAX_DIFFERENCE`, and no time was left or none shared a pass
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
    """Compare images alone and in company, in each class of pixels for which the budget lasts.

    The smallest class is always drawn alone and in company, since without that nothing is known:
    `model.runs_alone` is set where its images in company differ by more than `MAX_DIFFERENCE` from those of
    calls that have no company and no padding. Images that still differ by less under the cap and the buckets
    below, requests of which none shared a pass or some failed, and whatever the budget left no time for, make
    the promise `within 1/255`.
    `model.buckets` gets the row counts at which a row has the bits that it has among 4: all of them are
    tried, or 2 and the multiples of 4 where a step is slow or the model `is_compiled`. The cap is lowered to
    the largest of them below which no multiple of 4 is missing, if that keeps at least half of its rows; else
    the promise is `exact within a bucket`. Where memory runs out above 4 rows, the cap is the largest number
    of rows that fitted. `model.text_padding` is set where texts of different lengths can be padded; if images
    in company differ with it, all is tested again without.
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
        several = [_requests(model, size, offer) for size in dict.fromkeys(sizes)]
        if max_pixels != min(row_limits):  # the kinds have been tried
            num_further = len(model.tasks) - 1
            several = [[*one[:2], one[len(SCALES)], *one[len(one) - num_further :]] for one in several]
        members = BatchMembers.EQUAL
        for requests in several:
            if requests is not several[0] and budget.is_spent():
                members = BatchMembers.UNKNOWN
                break
            compared, is_same = _compared(model, in_class, requests, budget)
            is_repeatable = is_repeatable and is_same
            members = max(members, compared)
            if compared is BatchMembers.DIFFERENT and model.text_padding is not None:
                return find_determinism(
                    model, row_limits, offer, budget, is_compiled=is_compiled, can_pad_texts=False
                )
            if compared is BatchMembers.DIFFERENT:
                model.runs_alone, model.buckets = True, {}
                logger.info(
                    "images of a %s depend on their company: it draws one at a time", model.class_name
                )
                determinism_levels = DETERMINISM_LEVELS[0 if is_repeatable else -1]
                return SelfTest(determinism_levels, dict(row_limits), {})
        if determinism == 2 or members is BatchMembers.UNKNOWN:
            determinism = 2
            continue
        found, limits[max_pixels] = _try_rows(
            model, in_class, several, members, budget, is_compiled=is_compiled
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
    several: Sequence[Sequence[GenerationRequest]],
    members: BatchMembers,
    budget: TimeBudget,
    *,
    is_compiled: bool,
) -> tuple[int, int]:
    """Find the determinism level of a size (an index of `DETERMINISM_LEVELS`) and its cap; set its buckets.

    `several` has requests for each size, the square first. Where their images were `SIMILAR` only, they are
    drawn in company again under the cap and the buckets that were found.
    """
    ((max_pixels, max_rows),) = in_class.items()
    num_further = len(model.tasks) - 1
    # The unguided one, of one row, first; a further task can have passes of other shapes or modules.
    requests = [*several[0][1::-1], *several[0][len(several[0]) - num_further :]]
    counts = exact_row_counts(model, requests, max_rows, budget, is_compiled=is_compiled)
    if counts is None:
        return 2, max_rows
    found, max_rows = counts
    num_exact_rows = largest_in_unison(found)
    determinism, buckets = 0, Buckets(tuple(sorted(found)))
    if 2 * num_exact_rows >= max_rows:
        max_rows = min(max_rows, num_exact_rows)
    else:
        determinism, buckets = 1, MULTIPLES_OF_FOUR
    pixels = model.pixels_per_latent
    shape = (requests[0].height // pixels, requests[0].width // pixels)
    model.buckets = {**model.buckets, shape: buckets}
    if members is BatchMembers.SIMILAR:
        shapes = several[:1] if determinism == 1 else several  # a strict request of another shape runs alone
        again = [_compared_again(model, {max_pixels: max_rows}, one, budget, determinism) for one in shapes]
        determinism = determinism if max(again) is BatchMembers.EQUAL else 2
    return determinism, max_rows


def _sizes_between(sizes: Sequence[Size], row_limits: Mapping[int, int], max_pixels: int) -> list[Size]:
    """Those of the sizes that belong to the class of so many pixels, and to no smaller one."""
    smaller = max((limit for limit in row_limits if limit < max_pixels), default=0)
    return [(width, height) for width, height in sizes if smaller < width * height <= max_pixels]


def _requests(model: PipelineModel, size: Size, offer: Offer) -> list[GenerationRequest]:
    """Requests at one size that may share passes; each is of another kind than those before it.

    The first ones are of the model's usual task, the last ones of each further one.
    """
    plain = [plain_request(number, size, offer.schedulers[0]) for number in range(len(SCALES))]
    first = plain[0]
    # Of one prompt with the first: texts of other lengths may have no pass to share.
    requests = [*plain, replace(first, seed=len(plain))]
    if model.can_cut_guidance:
        requests.append(replace(first, seed=5, guidance_cutoff=0.5))
    if model.can_cache_steps:
        requests.append(cached_request(first))
    if len(offer.schedulers) > 1:
        requests.append(replace(first, seed=6, scheduler=offer.schedulers[1]))
    if offer.pipeline_parameters:
        requests.append(replace(first, seed=7, pipeline_parameters=dict(offer.pipeline_parameters)))
    usual, *further = model.tasks
    tasks = [usual] * len(requests)
    for number, task in enumerate(further):
        more = model.taken_beside(usual, task, offer.pipeline_parameters)
        if more:
            requests.append(replace(first, seed=20 + number, pipeline_parameters=more))
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
) -> tuple[BatchMembers, bool]:
    """How images in company compare, and whether one drawn twice is the same; sets `model.runs_alone`."""
    requests, bare, is_repeatable = _bare(model, row_limits, requests)
    model.runs_alone = False
    outcomes = outcomes_of(model, row_limits, requests)
    if difference(bare, [pixels_of(outcome) for outcome in outcomes]) > MAX_DIFFERENCE:
        return BatchMembers.DIFFERENT, is_repeatable
    return _compared_with_alone(model, row_limits, requests, outcomes, budget), is_repeatable


def _bare(
    model: PipelineModel, row_limits: Mapping[int, int], requests: Sequence[GenerationRequest]
) -> tuple[list[GenerationRequest], list[np.ndarray | EngineError], bool]:
    """Requests with their images, each drawn without company and padding; and whether that is repeatable.

    A kind of request beyond the plain ones that cannot be drawn says nothing of company, and is left out.
    """
    text_padding = model.text_padding
    model.runs_alone, model.text_padding = True, None
    bare = drawn(model, row_limits, requests)
    is_repeatable = difference(bare[:1], drawn(model, row_limits, requests[:1])) == 0
    model.text_padding = text_padding
    for request, image in zip(requests[len(SCALES) + 1 :], bare[len(SCALES) + 1 :], strict=True):
        if isinstance(image, EngineError):
            logger.warning(
                "a %s cannot draw with %s: %s", model.class_name, _differences(requests[0], request), image
            )
    told = [
        (request, one)
        for index, (request, one) in enumerate(zip(requests, bare, strict=True))
        if index <= len(SCALES) or isinstance(one, np.ndarray)
    ]
    return [request for request, _ in told], [one for _, one in told], is_repeatable


def _differences(plain: GenerationRequest, request: GenerationRequest) -> str:
    """What a request asks for that a plain one does not, by its fields."""
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
) -> BatchMembers:
    """How images in company compare under the model's buckets; `exact within a bucket` is for strict ones."""
    requests = [replace(request, strict=determinism == 1) for request in requests]
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
) -> BatchMembers:
    """How images that were drawn in company compare with those that the engine draws of one request alone."""
    if not have_met(outcomes):
        return BatchMembers.UNKNOWN
    for request, outcome in zip(requests, outcomes, strict=True):
        if budget.is_spent():
            return BatchMembers.UNKNOWN
        alone = outcomes_of(model, row_limits, [request], determinism)
        if difference([pixels_of(alone[0])], [pixels_of(outcome)]):
            return BatchMembers.SIMILAR
    return BatchMembers.EQUAL
