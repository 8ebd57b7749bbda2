"""At most one model of a pipeline on the device at a time; the others wait in main memory.

diffusers' own `enable_model_cpu_offload` follows one call of a pipeline: a model that runs sends away the one
before it in the pipeline's order alone, and the rest leaves when the call ends. Here no call ends: requests
join while others are denoised, so whoever runs sends away whoever was there. It knows no pipeline's order.
Not yet seen on a GPU: `make test-gpu` tries it.
"""

from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch.nn import Module


class Place:
    """The room on `device` for one model; used on the engine thread alone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.resident: Module | None = None

    def bring(self, model: Module) -> None:
        """Move `model` here, and before that whoever is here to main memory."""
        if model is self.resident:
            return
        self.clear()
        try:
            model.to(self.device)
        except BaseException:
            model.to("cpu")  # it may be here in part
            raise
        self.resident = model

    def clear(self) -> None:
        """Move whoever is here to main memory."""
        if self.resident is not None:
            self.resident.to("cpu")
            self.resident = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def offload_models(pipeline: Any, device: torch.device) -> Place:
    """Have each model of `pipeline` brought to `device` when it runs: a forward pass, or a VAE's `decode`."""
    place = Place(device)
    for part in pipeline.components.values():
        if isinstance(part, Module):
            add_hook_to_module(part.to("cpu"), _Bringing(place))
    return place


class _Bringing(ModelHook):  # type: ignore[misc]  # accelerate has no types
    """accelerate's, since diffusers' autoencoders ask for one of these where they run past `forward`."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.execution_device = place.device  # diffusers asks for it

    def pre_forward(
        self, module: Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before `module` runs."""
        self._place.bring(module)
        return args, kwargs
