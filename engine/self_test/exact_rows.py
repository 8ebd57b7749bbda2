"""Finds the row counts of a forward pass at which each row has the same bits as in a pass of 4 rows.

Kernels are chosen by shape, CPU or GPU, and thread count, so the counts are measured and never assumed. It
knows forward passes of parked calls, but not images.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.device_work import unless_out_of_memory
from engine.errors import OutOfMemory
from engine.partial_forwards import fitting
from engine.pipelines.parked_call import ParkedCall
from engine.pipelines.pipeline_call import PipelineCall
from engine.pipelines.pipeline_model import PipelineModel
from engine.pipelines.steady_stack import on_steady_stack
from engine.policy.buckets import BUCKET_STEP
from engine.request import GenerationRequest
from engine.self_test.time_budget import TimeBudget

logger = logging.getLogger(__name__)
FINE_SECONDS = 0.5
"""Every row count is tried if a step of 4 rows takes at most this long; else 2 and the multiples of 4."""
PROMPTS = ("a row", "a green ring above a black square", "", "three small circles on a yellow background")


@on_steady_stack
@torch.inference_mode()
def exact_row_counts(
    model: PipelineModel,
    requests: Sequence[GenerationRequest],
    max_rows: int,
    budget: TimeBudget,
    *,
    is_compiled: bool = False,
) -> tuple[set[int], int] | None:
    """Return the row counts that are exact for all requests, and the most rows that fit into memory.

    Counts above `max_rows` are not tried. Returns None if the budget is spent before all are tried, and if no
    count can be exact: a row with a step cache puts its whole batch through the partial forward, which may
    round differently.
    """
    exact: set[int] | None = None
    seen = set()
    for request, num_passes in [(one, number) for one in requests for number in model.passes_to_probe(one)]:
        probe = _Probe(model, request, num_passes)
        try:
            if probe.signature in seen:
                continue
            seen.add(probe.signature)
            if not probe.has_exact_partial_forward:
                logger.warning("the partial forward of a %s differs from its forward pass", model.class_name)
                return None
            counts = probe.exact_row_counts(max_rows, budget, is_compiled=is_compiled)
        finally:
            probe.end()
        if counts is None:
            return None
        exact = counts[0] if exact is None else exact & counts[0]
        max_rows = counts[1]
    return exact or {BUCKET_STEP}, max_rows


def largest_without_gap(found: set[int]) -> int:
    """Return the largest count in `found` below which no multiple of 4 is missing.

    Shapes that were not tried run at multiples of 4 only.
    """
    end = BUCKET_STEP
    while end in found:
        end += BUCKET_STEP
    return max((num_rows for num_rows in found if num_rows < end), default=BUCKET_STEP)


class _Probe:
    """Calls of one request and of similar ones at later steps, each parked at a pass of the denoiser.

    Each is parked after the first `num_passes` passes of its step. Several calls are compared because two
    orders of summation can give one row the same bits by chance.
    """

    def __init__(self, model: PipelineModel, request: GenerationRequest, num_passes: int = 0) -> None:
        self._model = model
        self._is_partial = model.can_cache(request)
        num_steps = min(2 * len(PROMPTS), model.schedulers.max_steps(request.scheduler))
        request = replace(request, num_inference_steps=num_steps)
        others = [replace(request, prompt=text, seed=seed) for seed, text in enumerate(PROMPTS, start=10)]
        self._calls = [model.begin(one) for one in (request, *others)]
        for num_steps, call in enumerate(self._calls):
            _advance(model, call, num_steps)
            for _ in range(num_passes):
                model.exchange.run([call])
        parked = [call.parked for call in self._calls if call.parked is not None]
        self._parked = [one for one in parked if one.signature == parked[0].signature]
        self.signature = parked[0].signature
        self._num_rows = parked[0].num_rows
        self._references = [self._outputs([one], BUCKET_STEP)[0] for one in self._parked]

    def end(self) -> None:
        """End the calls."""
        for call in self._calls:
            call.end()

    @property
    def has_exact_partial_forward(self) -> bool:
        """Whether a full step of the partial forward has the bits of the module's own forward pass."""
        if not self._is_partial:
            return True
        wholes = [self._model.exchange.outputs([one], BUCKET_STEP)[0] for one in self._parked]
        return all(
            is_equal(whole[0], partial) for whole, (partial, *_) in zip(wholes, self._references, strict=True)
        )

    def exact_row_counts(
        self, max_rows: int, budget: TimeBudget, *, is_compiled: bool
    ) -> tuple[set[int], int] | None:
        """Return what `exact_row_counts` does; counts below the rows of one call are not tried."""
        found, fitted = {*range(1, self._num_rows), BUCKET_STEP}, BUCKET_STEP
        seconds = self._step_seconds(budget)
        is_fine = not is_compiled and seconds <= FINE_SECONDS
        for num_rows in range(self._num_rows, max_rows + 1):
            if num_rows == BUCKET_STEP or not (is_fine or num_rows == 2 or num_rows % BUCKET_STEP == 0):
                continue
            if budget.is_spent(seconds):  # of the previous count, which had fewer rows
                return None
            began_at = budget.used_seconds
            is_equal = unless_out_of_memory(partial(self._is_equal, num_rows), self._model.device)
            if isinstance(is_equal, OutOfMemory):
                logger.warning(
                    "%s: %d rows of a %s do not fit into memory, so step batches are limited to %d rows",
                    OutOfMemory.code, num_rows, self._model.class_name, fitted,
                )  # fmt: skip
                return found, fitted
            fitted, seconds = max(fitted, num_rows), budget.used_seconds - began_at
            if is_equal:
                found.add(num_rows)
        return found, max_rows

    def _step_seconds(self, budget: TimeBudget) -> float:
        """Return the seconds of a warm forward pass of 4 rows, including device synchronization."""
        self._synchronize()
        started_at = budget.used_seconds
        self._model.exchange.outputs(self._parked[:1], BUCKET_STEP)
        self._synchronize()
        return budget.used_seconds - started_at

    def _synchronize(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)

    def _is_equal(self, num_rows: int) -> bool:
        """Whether each call has the bits of its reference in a pass of `num_rows` rows, at each position."""
        num_members = num_rows // self._num_rows
        # One arrangement is enough for 4 or more calls in a multiple of 4 rows. Otherwise every call is tried
        # at every position: kernels handle the rows after the last multiple of 4 separately, and the bits of
        # one call can be equal there by chance.
        is_enough = num_members >= BUCKET_STEP and num_rows % BUCKET_STEP == 0
        shifts = range(1) if is_enough else range(len(self._parked))
        for shift in shifts:
            numbers = [(shift + number) % len(self._parked) for number in range(num_members)]
            outputs = self._outputs([self._parked[number] for number in numbers], num_rows)
            if not all(
                is_equal(self._references[number], output)
                for number, output in zip(numbers, outputs, strict=True)
            ):
                return False
        return True

    def _outputs(self, members: Sequence[ParkedCall], num_rows: int) -> list[Any]:
        """Return the outputs that must not depend on a row's position.

        With a step cache they come from the partial forward: the output of a full step, which
        `has_exact_partial_forward` compares first, its features, and the output of a cached step.
        """
        model = self._model
        if not self._is_partial:
            outputs: list[Any] = model.exchange.outputs(members, num_rows)
            return outputs

        def partial(arguments: dict[str, Any]) -> tuple[Tensor, ...]:
            named = fitting(model.partial_forward, arguments)
            full, features = model.partial_forward.predict(**named, num_full_rows=num_rows, features=None)
            cached, _ = model.partial_forward.predict(**named, num_full_rows=0, features=features)
            return full, features, cached

        return list(model.exchange.outputs(members, num_rows, partial))


def _advance(model: PipelineModel, call: PipelineCall, num_steps: int) -> None:
    """Run a call to its first step and `num_steps` steps further, but never to its end."""
    model.exchange.run_to_denoiser(call)
    for _ in range(num_steps):
        if call.num_steps is not None and call.num_steps_done < call.num_steps - 1:
            model.exchange.run([call])


def is_equal(one: object, other: object) -> bool:
    """Whether two outputs of a module have the same bits."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return is_equal(list(one.values()), list(other.values()))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return one == other
