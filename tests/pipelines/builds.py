"""Builds small pipelines with random weights, each once per session and in `eval()` mode.

`BUILDS` has a `Build` for each pipeline class; the family modules fill it. A build knows its tasks and what
its call needs beyond `requests.arguments`. It does not know which test uses it.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import diffusers
import torch

TEXT, IMAGE, INPAINT, EDIT, CONTROL = "text to image", "image to image", "inpaint", "edit", "control"


@dataclass(frozen=True)
class Build:
    """How a pipeline class is built small and called.

    `components` makes the constructor's arguments. Those that the class does not take are left out; those
    that are missing are None. `arguments` replace those of `requests.arguments`: each is a value, or a
    function of the request's number. `size` is height and width of
    an image in pixels. `settle` changes the built pipeline, where only an attribute can make its images
    small.
    """

    tasks: tuple[str, ...]
    components: Callable[[], dict[str, Any]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    size: int = 64
    settle: Callable[[Any], None] = lambda _: None


UNSET = ("pad_token", "gate_up_proj", "down_proj")
"""Suffixes of the names of parameters that diffusers leaves uninitialized."""
AUTOENCODERS = ("vae", "movq", "vqgan", "vqvae")
BUILDS: dict[str, Build] = {}


@cache
def built(name: str) -> Any:
    """The pipeline of class `name`; the same object during the whole session."""
    build = BUILDS[name]
    torch.manual_seed(7)
    pipeline_class = getattr(diffusers, name)
    components = build.components()
    signature = inspect.signature(pipeline_class.__init__).parameters
    given = {
        parameter: components.get(parameter, None)
        for parameter, about in signature.items()
        if parameter in components or (parameter != "self" and about.default is inspect.Parameter.empty)
    }
    if "safety_checker" in signature:
        given["safety_checker"] = None
    if "requires_safety_checker" in signature:
        given["requires_safety_checker"] = False
    if "add_watermarker" in signature:
        given["add_watermarker"] = False
    pipeline = pipeline_class(**given)
    pipeline.set_progress_bar_config(disable=True)
    for part, module in modules(pipeline).items():
        module.eval().requires_grad_(False)
        _randomize(part, module)
    build.settle(pipeline)
    return pipeline


def modules(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The components of `pipeline` that have weights."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def _randomize(name: str, module: torch.nn.Module) -> None:
    """Give every linear layer noise that keeps the variance of its input: text and step show in the pixels.

    What is published as zeros, or left unset, is filled as well: a zero projection hides what is before it.
    """
    for path, weight in module.named_parameters():
        if not weight.is_floating_point() or not weight.numel():
            continue
        is_linear = (
            name not in AUTOENCODERS and weight.ndim == 2 and "embed" not in path and path.endswith("weight")
        )
        is_unset = (weight.ndim > 1 and not weight.any()) or path.endswith(UNSET)
        if is_linear or is_unset:
            fan_in = max(1, weight[0].numel())
            torch.nn.init.normal_(weight, std=fan_in**-0.5)
