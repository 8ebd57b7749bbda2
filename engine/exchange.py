"""Batches the forward passes of suspended calls of one diffusers pipeline, whatever its class.

Each request is a `PipelineCall`: diffusers' own code, parked at every call of a module. `Exchange.run` makes
one forward pass for many parked calls and resumes each with its rows of the output. Everything runs on one
thread under `torch.inference_mode`. It does not choose the calls, and knows neither requests nor deadlines.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from engine.adapters.adapter import Applied
from engine.adapters.adapter_rows import AdapterRows, RowsUnknownError
from engine.pipelines.components import is_denoiser
from engine.pipelines.encoded_prompts import OwnMethod
from engine.pipelines.parked_call import Merger, ParkedCall, split
from engine.pipelines.pipeline_call import PipelineCall
from engine.pipelines.text_padding import TextPadding

Forward = Callable[[dict[str, Any]], Any]
"""Returns the output of a module for the merged arguments of its calls."""


class Exchange:
    """Runs calls of `pipeline`, and of other pipelines over the same `modules`, together.

    `modules` has every component with weights by its name; if None, the components of `pipeline` are used.
    Neither is changed.
    """

    def __init__(self, pipeline: Any, modules: Mapping[str, Any] | None = None) -> None:
        self.takes_float_timesteps = False
        """Whether the denoiser gives the same output for an integer timestep as for that number in fp32."""
        self.has_one_layout = False
        """Whether denoisers get all rows contiguous; an input image may have another layout."""
        self.text_padding: TextPadding | None = None
        """Pads the texts of calls that begin from now on; None pads none."""
        self.mixes_adapters = True
        """Whether rows with different adapters may share a pass; False once a model has failed to do so."""
        self._pipeline = pipeline
        self._modules = modules or {}
        self._adapter_rows = AdapterRows(pipeline)
        self._merger = Merger()
        components = {**pipeline.components, **self._modules}.values()
        having = [one for one in components if hasattr(one, "attn_processors")]
        self._processors = [(module, dict(module.attn_processors)) for module in having]

    def begin(
        self,
        scheduler: Any = None,
        own_method: OwnMethod | None = None,
        guided_share: float = 1.0,
        pipeline: Any = None,
        adapters: Applied = (),
        /,
        **arguments: Any,
    ) -> PipelineCall:
        """Begin a call with these arguments and run it until it parks at its first forward pass or ends.

        `pipeline` has the same modules by the same names; None means the exchange's own. `scheduler` belongs
        to the call afterwards; None means a copy of the pipeline's scheduler. `own_method`, of
        `EncodedPrompts`, lets the call reuse prompts that were encoded before. `guided_share` is the share
        of steps with guidance; later steps have one row instead of two. `adapters` apply to all its rows.
        """
        pad = None if self.text_padding is None else self.text_padding.of_call().padded
        call = PipelineCall(
            self._pipeline if pipeline is None else pipeline,
            arguments,
            scheduler,
            own_method=own_method,
            pad=pad,
            has_float_numbers=self.takes_float_timesteps,
            has_one_layout=self.has_one_layout,
            guided_share=guided_share,
            adapters=adapters,
            on_end=self._ended,
        )
        call.go_on()
        return call

    def run(
        self, calls: Sequence[PipelineCall], num_rows: int | None = None, forward: Forward | None = None
    ) -> list[PipelineCall]:
        """Make one forward pass for parked calls of equal signature; each goes on until it parks or ends.

        The pass has `num_rows` rows: the calls' rows in order, then padding. `forward` replaces the module.
        Returns the calls whose part of a denoiser's output is not finite; they stay parked. If the pass
        raises, all calls stay parked and can be run again in smaller groups.
        """
        parked = [call.parked for call in calls if call.parked is not None]
        with self._with_adapters(calls, parked, num_rows, is_partial=forward is not None):
            try:
                parts = self.outputs(parked, num_rows, forward)
            except RowsUnknownError:
                self.mixes_adapters = False
                raise
        finite = [not is_denoiser(parked[0].name) or is_finite(part) for part in parts]
        for call, part, is_sound in zip(calls, parts, finite, strict=True):
            if is_sound:
                self._go_on(call, part)
        return [call for call, is_sound in zip(calls, finite, strict=True) if not is_sound]

    def _with_adapters(
        self,
        calls: Sequence[PipelineCall],
        parked: Sequence[ParkedCall],
        num_rows: int | None,
        *,
        is_partial: bool,
    ) -> AbstractContextManager[None]:
        if not any(call.adapters for call in calls):
            return nullcontext()
        counts = [one.num_rows for one in parked]
        return self._adapter_rows.applied(
            parked[0].name,
            [(call.adapters, count) for call, count in zip(calls, counts, strict=True)],
            sum(counts) if num_rows is None else num_rows,
            is_listed="list" in parked[0].kinds,
            is_partial=is_partial,
        )

    def run_to_denoiser(self, call: PipelineCall) -> None:
        """Run one call alone through encoders or decoders, until it waits for a denoiser or ends."""
        while call.parked is not None and not is_denoiser(call.parked.name):
            self.run([call])

    def outputs(
        self, parked: Sequence[ParkedCall], num_rows: int | None = None, forward: Forward | None = None
    ) -> list[Any]:
        """Make one forward pass and return each call's part of the output; the calls stay parked."""
        counts = [one.num_rows for one in parked]
        total = sum(counts) if num_rows is None else num_rows
        arguments = self._merger.merge(parked, total)
        output = forward(arguments) if forward else self.forward(parked[0].name, arguments)
        is_listed = "list" in parked[0].kinds
        return [output] if counts == [total] else split(output, counts, total, is_listed=is_listed)

    def _ended(self, is_whole: bool) -> None:
        self._merger.forget()
        if is_whole:
            return
        # Perturbed attention (PAG) replaces a shared module's processors until the call ends.
        for module, processors in self._processors:
            now = module.attn_processors
            if any(now.get(name) is not one for name, one in processors.items()):
                module.set_attn_processor(dict(processors))

    def free(self) -> None:
        """Free the tensors that are kept between two passes."""
        self._merger.forget()

    def forward(self, name: str, arguments: dict[str, Any]) -> Any:
        """The output of the module `name`, or of a method, as in `vae.decode`, for these arguments."""
        component, _, method = name.partition(".")
        module = self._modules.get(component)
        if module is None:
            module = getattr(self._pipeline, component)
        if not method:
            return module(**arguments)
        # An autoencoder may run in fp32 while pipelines pass it latents in the denoiser's dtype.
        arguments = {name: _as_floating(value, module.dtype) for name, value in arguments.items()}
        return getattr(module, method)(**arguments)

    def _go_on(self, call: PipelineCall, output: Any) -> None:
        call.go_on(output)


def _as_floating(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def is_finite(output: Any) -> bool:
    """Whether the first tensor of an output, or each of a list, is finite; faults in others show later."""
    if isinstance(output, Tensor):
        return not output.is_floating_point() or bool(torch.isfinite(output).all())
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return all(is_finite(one) for one in (output if isinstance(output, list) else output[:1]))
    return True
