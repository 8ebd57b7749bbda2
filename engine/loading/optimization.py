"""What makes a loaded pipeline faster or smaller on its device, by plain settings.

Owns their order and what cannot go together. It does not know whether they pay, nor whether rows stay
exact under them: the self-test runs afterwards, on what they made. Those for CUDA are not yet seen
on a GPU: `make test-gpu` tries them.
"""

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import torch

from engine.errors import LoadError
from engine.loading.offloading import offload_models
from engine.loading.small_step_batches import pad_small_linears
from engine.pipelines.components import denoiser_among

Quantization = Literal["none", "int8", "fp8"]
Offload = Literal["none", "model", "sequential"]
MAX_COMPILED_SHAPES = 1024


@dataclass(frozen=True)
class Optimization:
    """The settings of one model; the defaults change nothing."""

    channels_last: bool = False  # weights of convolutions in the order that tensor cores read
    compile: bool = False  # the denoiser's repeated blocks, once for each shape
    quantization: Quantization = "none"  # of the denoiser's linear weights; activations keep their dtype
    vae_slicing: bool = False  # without effect while one image is decoded at a time
    vae_tiling: bool = False  # large images decoded in overlapping tiles, blended: other pixels
    cpu_offload: Offload = "none"  # one whole model on the device at a time, or layer by layer


AS_IT_IS = Optimization()


def optimized(pipeline: Any, optimization: Optimization, device: torch.device) -> Any:
    """`pipeline` on `device` as `optimization` says; raises `LoadError` for what this model cannot have."""
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
        # Beyond its limit dynamo would run eagerly, whose bits differ from the compiled ones.
        torch._dynamo.config.recompile_limit = MAX_COMPILED_SHAPES
        torch._dynamo.config.accumulated_recompile_limit = MAX_COMPILED_SHAPES
        denoiser.compile_repeated_blocks(fullgraph=True, dynamic=False)
    return pipeline


def settle(model: Any, optimization: Optimization, device: torch.device) -> None:
    """Tell a model whose weights lie elsewhere between two uses where its tensors are wanted."""
    if optimization.cpu_offload == "none":
        return
    model.device = device
    model.partial_forward = None  # it goes from block to block, and only whole models are fetched


def _check(pipeline: Any, optimization: Optimization, device: torch.device) -> None:
    denoiser, name = _denoiser(pipeline), type(_denoiser(pipeline)).__name__
    offload = optimization.cpu_offload
    if optimization.channels_last and not hasattr(pipeline, "unet"):
        raise LoadError(f"channels_last: {name} has no convolutions to speak of; it is for UNets")
    if optimization.compile and not getattr(denoiser, "_repeated_blocks", None):
        raise LoadError(f"compile: diffusers names no repeated blocks of {name}")
    for wanted, does in (("vae_slicing", "enable_slicing"), ("vae_tiling", "enable_tiling")):
        if getattr(optimization, wanted) and not hasattr(pipeline.vae, does):
            raise LoadError(f"{wanted}: {type(pipeline.vae).__name__} has none")
    if offload != "none" and device.type != "cuda":
        raise LoadError(
            f"cpu_offload: {offload!r} is for CUDA devices; on {device.type} nothing can be gained"
        )
    if offload == "sequential" and (optimization.compile or optimization.quantization != "none"):
        raise LoadError("cpu_offload: 'sequential' goes with neither compile nor quantization")
    if optimization.quantization != "none" and importlib.util.find_spec("torchao") is None:
        raise LoadError("quantization: it needs the package torchao, which is not installed")


def _denoiser(pipeline: Any) -> Any:
    modules = {name: one for name, one in pipeline.components.items() if isinstance(one, torch.nn.Module)}
    return modules[denoiser_among(list(modules)) or ""]


def _quantize(denoiser: Any, quantization: Quantization) -> None:
    """8-bit weights with a scale for each output channel, as torchao makes them of every `Linear`."""
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    config = Int8WeightOnlyConfig() if quantization == "int8" else Float8WeightOnlyConfig()
    quantize_(denoiser.requires_grad_(False), config)
