"""Partial forwards: a denoiser run block by block, so that cached rows can skip its inner blocks.

Maps each supported class of denoisers to its partial forward, and a call's arguments to the parameters of
that forward. It does not know which rows are cached.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from engine.partial_forwards.flux import FluxPartialForward
from engine.partial_forwards.pixart import PixArtPartialForward
from engine.partial_forwards.sana import SanaPartialForward
from engine.partial_forwards.stable_diffusion_3 import StableDiffusion3PartialForward
from engine.partial_forwards.unet import UNetPartialForward

PARTIAL_FORWARDS: Mapping[str, Any] = {
    "UNet2DConditionModel": UNetPartialForward,
    "SD3Transformer2DModel": StableDiffusion3PartialForward,
    "PixArtTransformer2DModel": PixArtPartialForward,
    "SanaTransformer2DModel": SanaPartialForward,
    "FluxTransformer2DModel": FluxPartialForward,
}
"""The partial forward by the class name of a denoiser."""
UNET_NAMES = {
    "sample": "latents",
    "timestep": "timesteps",
    "encoder_hidden_states": "prompt_embeds",
    "added_cond_kwargs": "added",
    "timestep_cond": "timestep_cond",
}
"""A UNet's argument -> parameter of `UNetPartialForward`. Transformers keep their argument names."""


def partial_forward_of(denoiser: Any) -> Any:
    """The partial forward of this denoiser, or None if its class or configuration is not supported."""
    kind = PARTIAL_FORWARDS.get(type(denoiser).__name__)
    return kind(denoiser) if kind is not None and kind.supports(denoiser) else None


def fitting(partial_forward: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by parameter of its `predict`; raises `TypeError` for one that it does not support."""
    names = UNET_NAMES if isinstance(partial_forward, UNetPartialForward) else {}
    known = inspect.signature(partial_forward.predict).parameters
    named = {}
    for argument, value in arguments.items():
        name = names.get(argument, argument)
        if name in known:
            named[name] = value
        elif not (value is None or value == {} or (argument == "return_dict" and value is False)):
            raise TypeError(f"a step cache cannot be used with the argument {argument}")
    if "return_dict" not in arguments:
        raise TypeError("a step cache needs a pipeline that passes return_dict=False")
    return named
