"""Draws requests with different adapters, or none, in random batches, and by diffusers itself.

Two adapters with random weights for the denoiser's attention are written to files, which both sides read. It
does not know the pipeline's class.
"""

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from engine.adapters.adapter import Adapter, Applied
from engine.adapters.adapter_file import AdapterReader, takes_adapters
from engine.adapters.adapter_rows import RowsUnknownError
from engine.pipelines.components import denoiser_among
from engine.pipelines.steady_stack import on_steady_stack
from tests.pipelines.builds import built, modules
from tests.pipelines.classes import ALONE
from tests.pipelines.drawn import pixels
from tests.pipelines.members import MEAN, MOST, BatchMembers, differences_of
from tests.pipelines.requests import arguments, seed

SEEN: dict[str, str] = {}
"""The texts of the page for each class that was tested."""

ENDINGS = ("to_q", "to_k", "to_v", "to_out.0", "to_qkv", "qkv", "to_qkv_mlp_proj", "to_query", "to_value")
CHOICES: tuple[dict[str, float], ...] = ({"a": 1.0}, {}, {"b": -0.75}, {"a": 0.5, "b": 1.0})
"""Adapters with their scales, used in turn."""
LOUDNESS = 0.5
NUDGE = 1 + 1e-6


@dataclass(frozen=True)
class LoraSeen:
    """The results of batches with mixed adapters: differences in steps of 1/255, and calls in a pass.

    A difference above the bound is reduced by the difference of diffusers' own images when its scales change
    by a millionth.
    """

    most: float
    mean: float
    calls_a_pass: float
    mixes: bool
    change: float  # the largest change of a plain image by its adapters

    @property
    def is_equal(self) -> bool:
        return self.most <= MOST and self.mean <= MEAN


def takes_loras(name: str) -> bool:
    """Whether diffusers loads adapters for this class, and its calls can share passes."""
    return name not in ALONE and takes_adapters(built(name))


def scales_of(number: int) -> dict[str, float]:
    """The adapters of request `number` with their scales."""
    return CHOICES[number % len(CHOICES)]


@on_steady_stack
@torch.inference_mode()
def draw_with_loras(name: str, numbers: range, chance: int) -> LoraSeen:
    """Draw requests `numbers` in batches; compare each with diffusers' own image with its adapters."""
    with torch.inference_mode(False), TemporaryDirectory() as folder:
        paths = written(name, Path(folder))
        reader = AdapterReader(built(name), torch.device("cpu"))
        adapters = {adapter: reader.read(adapter, path) for adapter, path in paths.items()}
        theirs = with_loras(name, paths)
    references = {number: drawn(name, theirs, number, scales_of(number)) for number in numbers}
    members = LoraMembers(name, numbers, random.Random(chance), adapters)
    members.run()
    changes = [
        abs(image - drawn(name, theirs, number, {})).max() * 255
        for number, image in references.items()
        if scales_of(number)
    ]
    differences = differences_of(references, members.images)
    if differences[0] > MOST or differences[1] > MEAN:
        # With a denoiser in half precision, diffusers' own image changes with the last bit of a scale.
        nudged = {
            number: drawn(
                name, theirs, number, {one: NUDGE * scale for one, scale in scales_of(number).items()}
            )
            for number in numbers
        }
        own = differences_of(references, nudged)
        differences = (max(0.0, differences[0] - own[0]), max(0.0, differences[1] - own[1]))
    return LoraSeen(*differences, members.calls_a_pass, members.mixes, float(max(changes)))


class LoraMembers(BatchMembers):
    """Requests of one pipeline, each with its own adapters, that share passes as `chance` decides."""

    def __init__(
        self, name: str, numbers: range, chance: random.Random, adapters: Mapping[str, Adapter]
    ) -> None:
        super().__init__(name, numbers, chance)
        self._adapters = adapters

    @property
    def mixes(self) -> bool:
        return self._exchange.mixes_adapters

    def _begin(self, number: int) -> Any:
        scales = scales_of(number)
        applied: Applied = [(self._adapters[name], scale) for name, scale in scales.items()]
        return self._exchange.begin(None, None, 1.0, None, applied, **arguments(self._name, number))

    def _make_pass(self, chosen: list[Any]) -> list[Any]:
        try:
            return super()._make_pass(chosen)
        except RowsUnknownError:  # as the engine does
            return [ill for call in chosen for ill in super()._make_pass([call])]


def written(name: str, folder: Path) -> dict[str, Path]:
    """Two adapters of different ranks for the denoiser's attention."""
    parts = modules(built(name))
    component = denoiser_among(list(parts)) or ""
    layers = [
        (path, one)
        for path, one in parts[component].named_modules()
        if isinstance(one, torch.nn.Linear) and path.endswith(ENDINGS)
    ]
    assert layers, f"{name}: no layer of its {component} has one of the known names"
    paths = {}
    for number, (adapter, rank) in enumerate((("a", 4), ("b", 2))):
        noise = torch.Generator().manual_seed(number)
        tensors = {}
        for path, one in layers:
            down = torch.randn(rank, one.in_features, generator=noise) * one.in_features**-0.5
            up = torch.randn(one.out_features, rank, generator=noise) * LOUDNESS * rank**-0.5
            tensors[f"{component}.{path}.lora_A.weight"] = down
            tensors[f"{component}.{path}.lora_B.weight"] = up
        paths[adapter] = folder / f"{adapter}.safetensors"
        save_file(tensors, paths[adapter])
    return paths


def with_loras(name: str, paths: Mapping[str, Path]) -> Any:
    """A copy of the pipeline into which diffusers has loaded the adapters."""
    copies = {id(module): copy.deepcopy(module) for module in modules(built(name)).values()}
    own = _over(built(name), copies)
    for adapter, path in paths.items():
        own.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=adapter)
    return own


def _over(pipeline: Any, copies: Mapping[int, Any]) -> Any:
    """A copy of the pipeline over copies of its modules, by id; nested pipelines are copied too."""
    own = copy.copy(pipeline)
    for part, value in vars(pipeline).items():
        if isinstance(value, DiffusionPipeline):
            vars(own)[part] = _over(value, copies)
        elif id(value) in copies:
            vars(own)[part] = copies[id(value)]
    return own


def drawn(name: str, pipeline: Any, number: int, scales: Mapping[str, float]) -> numpy.ndarray:
    """The image of request `number` by diffusers' own call with these adapters."""
    if scales:
        pipeline.enable_lora()
        pipeline.set_adapters(list(scales), list(scales.values()))
    else:
        pipeline.disable_lora()
    torch.manual_seed(seed(number))
    return pixels(pipeline(**arguments(name, number)))
