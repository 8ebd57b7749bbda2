"""Settings that make a loaded pipeline faster or smaller on its device.

Owns the order in which they are applied and which combinations are refused. It does not know whether they
are worth using, nor whether rows stay exact with them: the self-test runs afterwards. The settings for CUDA
have not been tried on a GPU yet: `make test-gpu` tries them.
"""

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn

from engine.errors import LoadError
from engine.pipelines.components import denoiser_among
from engine.policy.buckets import BUCKET_STEP

Quantization = Literal["none", "int8", "fp8"]
Offload = Literal["none", "model", "sequential"]
MAX_COMPILED_SHAPES = 1024


@dataclass(frozen=True)
class Optimization:
    """The settings of one model; the defaults change nothing."""

    channels_last: bool = False  # convolution weights in the memory order that tensor cores read
    compile: bool = False  # the denoiser's repeated blocks, once for each shape
    quantization: Quantization = "none"  # of the denoiser's linear weights; activations keep their dtype
    vae_slicing: bool = False  # without effect while images are decoded one at a time
    vae_tiling: bool = False  # large images are decoded in overlapping, blended tiles: pixels change
    cpu_offload: Offload = "none"  # one whole model on the device at a time, or layer by layer


NO_OPTIMIZATION = Optimization()


def optimized(pipeline: Any, optimization: Optimization, device: torch.device) -> Any:
    """Move `pipeline` to `device` and apply `optimization`; raises `LoadError` for an unsupported setting."""
    _check(pipeline, optimization, device)
    denoiser = _denoiser(pipeline)
    if optimization.channels_last:
        denoiser.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    if optimization.vae_slicing:
        pipeline.vae.enable_slicing()
    if optimization.vae_tiling:
        pipeline.vae.enable_tiling()
    if optimization.quantization != "none":
        _quantize(denoiser, optimization.quantization)
    pad_small_linears(denoiser)
    if optimization.cpu_offload == "model":
        offload_models(pipeline, device)
    elif optimization.cpu_offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)
    if optimization.compile:
        # Beyond its limit dynamo falls back to eager code, whose bits differ from those of compiled code.
        torch._dynamo.config.recompile_limit = MAX_COMPILED_SHAPES
        torch._dynamo.config.accumulated_recompile_limit = MAX_COMPILED_SHAPES
        denoiser.compile_repeated_blocks(fullgraph=True, dynamic=False)
    return pipeline


def adapt_to_offloading(model: Any, optimization: Optimization, device: torch.device) -> None:
    """Set the device of a model with `cpu_offload` and turn its partial forward off."""
    if optimization.cpu_offload == "none":
        return
    model.device = device
    model.partial_forward = None  # it calls single blocks, and offloading moves whole models


def _check(pipeline: Any, optimization: Optimization, device: torch.device) -> None:
    denoiser, name = _denoiser(pipeline), type(_denoiser(pipeline)).__name__
    offload = optimization.cpu_offload
    if optimization.channels_last and not hasattr(pipeline, "unet"):
        raise LoadError(f"channels_last: {name} has few convolutions: the setting is for UNets")
    if optimization.compile and not getattr(denoiser, "_repeated_blocks", None):
        raise LoadError(f"compile: diffusers lists no repeated blocks for {name}")
    for wanted, does in (("vae_slicing", "enable_slicing"), ("vae_tiling", "enable_tiling")):
        if getattr(optimization, wanted) and not hasattr(pipeline.vae, does):
            raise LoadError(f"{wanted}: {type(pipeline.vae).__name__} does not support it")
    if offload != "none" and device.type != "cuda":
        raise LoadError(f"cpu_offload: {offload!r} is for CUDA devices; on {device.type} it saves no memory")
    if offload == "sequential" and (optimization.compile or optimization.quantization != "none"):
        raise LoadError("cpu_offload: 'sequential' can be combined with neither compile nor quantization")
    if optimization.quantization != "none" and importlib.util.find_spec("torchao") is None:
        raise LoadError("quantization: it needs the package torchao, which is not installed")


def _denoiser(pipeline: Any) -> Any:
    modules = {name: one for name, one in pipeline.components.items() if isinstance(one, nn.Module)}
    return modules[denoiser_among(list(modules)) or ""]


def _quantize(denoiser: Any, quantization: Quantization) -> None:
    """Quantize every `Linear` with torchao to 8-bit weights, with one scale for each output channel."""
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    config = Int8WeightOnlyConfig() if quantization == "int8" else Float8WeightOnlyConfig()
    quantize_(denoiser.requires_grad_(False), config)


class RowPaddedLinear(nn.Linear):
    """A `Linear` that pads inputs of fewer than 4 rows `(..., in)` to 4, where tokens count as rows.

    Matrix products of 1 to 3 rows use separate kernels, which sum in a different order. With the padding two
    and three rows get the bits that they get among four, and the rest of the denoiser needs no padding. The
    self-test checks this. In a denoiser such inputs are the embeddings of timesteps and pooled texts, and
    texts of one to three tokens: padding them costs far less than padding the denoiser's whole input.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return `(..., out)`, with as many rows as `input`."""
        num_rows = input.shape[:-1].numel()
        if num_rows >= BUCKET_STEP or not num_rows:
            return super().forward(input)
        rows = input.reshape(num_rows, -1)
        padded = torch.cat([rows, rows[-1:].expand(BUCKET_STEP - num_rows, -1)])
        return super().forward(padded)[:num_rows].reshape(*input.shape[:-1], -1)


def pad_small_linears(denoiser: nn.Module) -> None:
    """Turn each plain `Linear` of `denoiser`, quantized or not, into a `RowPaddedLinear`; keep subclasses."""
    for module in denoiser.modules():
        if type(module) is nn.Linear:
            module.__class__ = RowPaddedLinear


class DeviceSlot:
    """Room on `device` for one model at a time; used on the engine thread only.

    diffusers' `enable_model_cpu_offload` assumes one call at a time: a model that runs evicts only the one
    before it in the pipeline's order, and the others are moved off the device when the call ends. Here
    requests join while others are denoised, so every model that runs evicts the one on the device, in any
    order.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.resident: nn.Module | None = None

    def load(self, model: nn.Module) -> None:
        """Move `model` to the device, after moving the resident model to main memory."""
        if model is self.resident:
            return
        self.clear()
        try:
            model.to(self.device)
        except BaseException:
            model.to("cpu")  # part of it may have been moved
            raise
        self.resident = model

    def clear(self) -> None:
        """Move the resident model to main memory."""
        if self.resident is not None:
            self.resident.to("cpu")
            self.resident = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def offload_models(pipeline: Any, device: torch.device) -> DeviceSlot:
    """Keep the models of `pipeline` in main memory and load each one when its `forward` or `decode` runs."""
    slot = DeviceSlot(device)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            add_hook_to_module(part.to("cpu"), _LoadHook(slot))
    return slot


class _LoadHook(ModelHook):  # type: ignore[misc]  # accelerate has no types
    """A hook of accelerate, because diffusers' autoencoders call such hooks for `encode` and `decode`."""

    def __init__(self, slot: DeviceSlot) -> None:
        self._slot = slot
        self.execution_device = slot.device  # diffusers reads it

    def pre_forward(
        self, module: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Load `module` before it runs."""
        self._slot.load(module)
        return args, kwargs
