"""When `torch.compile` may compile: while models are loaded, the sizes that their tiers name; never later.

A shape takes from seconds to minutes to compile. Were that left to the first job that asks for it, every
job of the worker would stand still meanwhile, and the watchdog could not tell it from a hung step. So what
was not compiled by then runs as it was written: always, hence with the same bits each time.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from engine.attempt import unless_out_of_memory
from engine.errors import OutOfMemory
from engine.pipelines.parked_call import ParkedCall
from engine.pipelines.pipeline_model import PipelineModel
from engine.pipelines.steady_stack import on_steady_stack
from engine.policy.buckets import BUCKET_STEP, at
from engine.request import GenerationRequest, SchedulerSpec
from engine.self_test.time_budget import TimeBudget

logger = logging.getLogger(__name__)

Size = tuple[int, int]
"""Width and height, pixels."""


@contextmanager
def only_here(*, is_wanted: bool) -> Iterator[None]:
    """Let what runs inside be compiled, and nothing that runs in this process afterwards."""
    if not is_wanted:
        yield
        return
    torch.compiler.set_stance("default")
    try:
        yield
    finally:
        torch.compiler.set_stance("eager_on_recompile")  # what is compiled stays in use


@contextmanager
def as_written() -> Iterator[None]:
    """Run inside what every size that no tier names will run."""
    with torch.compiler.set_stance("force_eager"):
        yield


@on_steady_stack
@torch.inference_mode()
def compile_sizes(
    model: PipelineModel, sizes: Iterable[Size], row_limits: Mapping[int, int], budget: TimeBudget
) -> dict[int, int]:
    """Compile every bucket of each of these sizes while the time lasts; the row limits that fit."""
    limits = dict(row_limits)
    for size in sizes:
        if budget.is_spent():
            break
        max_pixels = min(limit for limit in limits if limit >= size[0] * size[1])
        call = model.begin(model.trial(_request(*size)))
        model.exchange.run_to_denoiser(call)
        try:
            if call.parked is not None:
                limits[max_pixels] = _compile_rows(model, size, call.parked, limits[max_pixels], budget)
        finally:
            call.end()
    return limits


def _request(width: int, height: int) -> GenerationRequest:
    return GenerationRequest("", "a size", width, height, 2, 1.0, seed=0, scheduler=SchedulerSpec("default"))


def _compile_rows(
    model: PipelineModel, size: Size, parked: ParkedCall, max_rows: int, budget: TimeBudget
) -> int:
    """Make a forward pass at each bucket up to `max_rows`; the most rows that fit."""
    pixels, fitted = model.pixels_per_latent, BUCKET_STEP
    buckets = at(model.buckets, size[1] // pixels, size[0] // pixels)
    for num_rows in sorted({buckets.rows(rows) for rows in range(parked.num_rows, max_rows + 1)}):
        if budget.is_spent():
            return max_rows
        if not _fits(model, parked, num_rows):
            logger.warning(
                "%s: %d rows of %dx%d pixels do not fit, so its step batches are kept to %d",
                OutOfMemory.code, num_rows, *size, fitted,
            )  # fmt: skip
            return fitted
        fitted = num_rows
    return max_rows


def _fits(model: PipelineModel, parked: ParkedCall, num_rows: int) -> bool:
    """Whether so many rows do; raises what was wrong where they are no more than the smallest bucket."""

    def predict() -> None:  # torch compiles what it meets
        model.exchange.outputs([parked], num_rows)

    if num_rows <= BUCKET_STEP:
        predict()
        return True
    return not isinstance(unless_out_of_memory(predict, model.device), OutOfMemory)
