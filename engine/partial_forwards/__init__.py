"""Which denoisers can be walked through block by block, and how a call's arguments fit a walk.

A walk leaves out the deep part of a model for some of its rows. It owns no walk and runs none.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from engine.partial_forwards.flux import FluxWalk
from engine.partial_forwards.pixart import PixArtWalk
from engine.partial_forwards.sana import SanaWalk
from engine.partial_forwards.stable_diffusion_3 import StableDiffusion3Walk
from engine.partial_forwards.unet import UNetWalk

WALKS: Mapping[str, Any] = {
    "UNet2DConditionModel": UNetWalk,
    "SD3Transformer2DModel": StableDiffusion3Walk,
    "PixArtTransformer2DModel": PixArtWalk,
    "SanaTransformer2DModel": SanaWalk,
    "FluxTransformer2DModel": FluxWalk,
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


def walk_of(denoiser: Any) -> Any:
    """A walk through this model, or None where there is none of its kind."""
    walk = WALKS.get(type(denoiser).__name__)
    return walk(denoiser) if walk is not None and walk.can_walk(denoiser) else None


def fitting(walk: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by the walk's names; raises `TypeError` for one that it would leave out."""
    names = UNET_NAMES if isinstance(walk, UNetWalk) else {}
    known = inspect.signature(walk.predict).parameters
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
