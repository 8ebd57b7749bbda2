"""Compiles models with `torch.compile` while they are loaded, for the sizes of their tiers, and never later.

Compiling a shape takes seconds to minutes. If a job triggered it, every job of the worker would wait, and the
watchdog could not tell it from a hung step. So shapes that were not compiled at load always run uncompiled,
and give the same bits each time.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from engine.device_work import unless_out_of_memory
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
def compilation_allowed(*, is_wanted: bool) -> Iterator[None]:
    """Allow compilation inside the block, and forbid it in this process afterwards."""
    if not is_wanted:
        yield
        return
    torch.compiler.set_stance("default")
    try:
        yield
    finally:
        torch.compiler.set_stance("eager_on_recompile")  # compiled code stays in use


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run the block uncompiled, as sizes that are not a tier's default run."""
    with torch.compiler.set_stance("force_eager"):
        yield


@on_steady_stack
@torch.inference_mode()
def compile_sizes(
    model: PipelineModel, sizes: Iterable[Size], row_limits: Mapping[int, int], budget: TimeBudget
) -> dict[int, int]:
    """Compile every bucket of each size until the budget is spent; return row limits that fit into memory."""
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
    """Make a forward pass at each bucket up to `max_rows`; return the largest row count that fits."""
    pixels, fitted = model.pixels_per_latent, BUCKET_STEP
    buckets = at(model.buckets, size[1] // pixels, size[0] // pixels)
    for num_rows in sorted({buckets.rows(rows) for rows in range(parked.num_rows, max_rows + 1)}):
        if budget.is_spent():
            return max_rows
        if not _fits(model, parked, num_rows):
            logger.warning(
                "%s: %d rows of %dx%d pixels do not fit into memory, so step batches are limited to %d rows",
                OutOfMemory.code, num_rows, *size, fitted,
            )  # fmt: skip
            return fitted
        fitted = num_rows
    return max_rows


def _fits(model: PipelineModel, parked: ParkedCall, num_rows: int) -> bool:
    """Whether `num_rows` rows fit into memory; raises the error if the smallest bucket fails."""

    def predict() -> None:  # compiles the shape
        model.exchange.outputs([parked], num_rows)

    if num_rows <= BUCKET_STEP:
        predict()
        return True
    return not isinstance(unless_out_of_memory(predict, model.device), OutOfMemory)
