"""Shares forward passes between suspended calls of one diffusers pipeline, whatever its class.

Each request is a `PipelineCall`: diffusers' own code, parked wherever it calls a module. `Exchange.run` makes
one forward pass for many parked calls and lets each go on. All of it happens on one thread, in one
`torch.inference_mode`. It does not choose which calls run, and knows neither requests nor deadlines.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.parked_call import Merger, split
from engine.pipeline_call import PipelineCall

SIDE_MODULES = ("text_encoder", "image_encoder", "image_embedder", "vae", "vqvae", "vqgan", "movq", "safety_")
"""Beginnings of the names of components that run once in a call, before or after the denoising steps."""


class Exchange:
    """Runs calls of `pipeline` together; neither the pipeline nor its modules are changed.

    `bucket_rows` says at how many rows a denoiser runs so many rows.
    """

    def __init__(self, pipeline: Any, bucket_rows: Callable[[int], int] = lambda num_rows: num_rows) -> None:
        self._pipeline = pipeline
        self._bucket_rows = bucket_rows
        self._merger = Merger()

    def begin(self, scheduler: Any = None, /, **arguments: Any) -> PipelineCall:
        """Begin a call with these arguments; returned as it parks at its first forward pass, or has ended.

        `scheduler` is used up by the call; without one it has a copy of the pipeline's own.
        """
        call = PipelineCall(self._pipeline, arguments, scheduler, on_end=self._merger.forget)
        call.go_on()
        return call

    def run(self, calls: Sequence[PipelineCall]) -> list[PipelineCall]:
        """Make one forward pass for parked calls of equal signature; each goes on until it parks or ends.

        Returns those whose part of the output is not finite: they stay parked. If the pass raises, all stay
        parked, and can be run again in parts.
        """
        parked = [call.parked for call in calls if call.parked is not None]
        counts = [one.num_rows for one in parked]
        name, num_rows = parked[0].name, sum(counts)
        if is_denoiser(name):
            num_rows = self._bucket_rows(num_rows)
        output = self._forward(name, self._merger.merge(parked, num_rows))
        is_listed = "list" in parked[0].kinds
        parts = [output] if counts == [num_rows] else split(output, counts, num_rows, is_listed=is_listed)
        finite = [not is_denoiser(name) or _is_finite(part) for part in parts]
        for call, part, is_finite in zip(calls, parts, finite, strict=True):
            if is_finite:
                self._go_on(call, part)
        return [call for call, is_finite in zip(calls, finite, strict=True) if not is_finite]

    def _forward(self, name: str, arguments: dict[str, Any]) -> Any:
        component, _, method = name.partition(".")
        module = getattr(self._pipeline, component)
        return (getattr(module, method) if method else module)(**arguments)

    def _go_on(self, call: PipelineCall, output: Any) -> None:
        call.go_on(output)


def is_denoiser(name: str) -> bool:
    """Whether a component of this name runs at every denoising step."""
    return not name.removeprefix("prior_").startswith(SIDE_MODULES)


def _is_finite(output: Any) -> bool:
    """Whether the first tensor of an output is finite; what is wrong with others shows in later outputs."""
    if isinstance(output, Tensor):
        return not output.is_floating_point() or bool(torch.isfinite(output).all())
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return all(_is_finite(one) for one in (output if isinstance(output, list) else output[:1]))
    return True
