"""Which denoisers can be walked through block by block, and how a call's arguments fit a walk.

A walk leaves out the deep part of a model for some of its rows. It owns no walk and runs none.
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
"""By the class of a denoiser."""
UNET_NAMES = {
    "sample": "latents",
    "timestep": "timesteps",
    "encoder_hidden_states": "prompt_embeds",
    "added_cond_kwargs": "added",
    "timestep_cond": "timestep_cond",
}
"""The walk's names for arguments of a UNet; the other walks have their model's own."""


def partial_forward_of(denoiser: Any) -> Any:
    """A walk through this model, or None where there is none of its kind."""
    partial_forward = PARTIAL_FORWARDS.get(type(denoiser).__name__)
    return (
        partial_forward(denoiser)
        if partial_forward is not None and partial_forward.fits_partial_forward(denoiser)
        else None
    )


def fitting(partial_forward: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by the walk's names; raises `TypeError` for one that it would leave out."""
    names = UNET_NAMES if isinstance(partial_forward, UNetPartialForward) else {}
    known = inspect.signature(partial_forward.predict).parameters
    named = {}
    for argument, value in arguments.items():
        name = names.get(argument, argument)
        if name in known:
            named[name] = value
        elif not (value is None or value == {} or (argument == "return_dict" and value is False)):
            raise TypeError(f"a step cache cannot be used with {argument}")
    if "return_dict" not in arguments:
        raise TypeError("a step cache needs a pipeline that asks for tuples")
    return named
