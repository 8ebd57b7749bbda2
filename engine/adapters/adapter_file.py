"""From a safetensors file of LoRA weights, in any format that diffusers reads, to an `Adapter`.

diffusers' own loader reads it into a copy of the pipeline's modules that has no weights, and what it has put
there is taken out: the modules that draw are never touched, so any thread may read while they do. It does not
know which adapters are kept.
"""

import copy
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from engine.adapters.adapter import Adapter, Layer
from engine.attempt import translate
from engine.errors import LoadError, LoraUnusable, OutOfMemory
from engine.pipelines.components import denoiser_among

logger = logging.getLogger(__name__)
NAME = "adapter"  # of the only one in a copy
LOADER = "load_lora_weights"
WITHOUT_ADAPTERS = ("vae",)
DOWN_ENDINGS = ("lora_A.weight", "lora_down.weight", "lora.down.weight", "lora_linear_layer.down.weight")
# diffusers says of each part of a pipeline that a file has nothing for it, as few have something for all, and
# of one that does not fit each layer: whoever asked for it is told.
for _loader in ("lora_base", "peft"):
    logging.getLogger(f"diffusers.loaders.{_loader}").setLevel(logging.CRITICAL)
_one_at_a_time = threading.Lock()
"""Of all models: peft exchanges methods of torch's modules while it reads, and puts back what it found."""
MAX_SAID = 300  # characters of a library's own words


class AdapterReader:
    """Reads adapters for the modules of `pipeline`, onto `device`; raises `LoadError` where it takes none."""

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        if not takes_adapters(pipeline):
            raise LoadError(f"loras: diffusers reads none for a {type(pipeline).__name__}")
        self._device = device
        parts = _modules(pipeline)
        # Of the modules themselves only what tells whether a layer fits, which later passes do not change.
        self._hollow = {name: _hollow(one) for name, one in parts.items() if name not in WITHOUT_ADAPTERS}
        self._pipeline = copy.copy(pipeline)
        self._dtypes = {name: _dtype_of(one) for name, one in self._hollow.items()}

    def num_bytes(self, path: Path) -> int:
        """What its tensors will take on the device; only the head of the file is read."""
        size = max(dtype.itemsize for dtype in self._dtypes.values())
        with safe_open(path, framework="pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        return sum(size * int(torch.Size(shape).numel()) for shape in shapes)

    def read(self, name: str, path: Path) -> Adapter:
        """The adapter of that file; raises `LoraUnusable` for one that this model cannot have."""
        try:
            layers = self._layers(path)
        except _UnfitError as error:
            raise LoraUnusable(f"loras: {name!r} cannot be used: {error}") from error
        except Exception as error:  # out of the libraries, for whatever the file has
            if isinstance(translate(error), OutOfMemory):
                raise
            said = " ".join(str(error).replace(str(path.parent), "").split())[:MAX_SAID]
            raise LoraUnusable(f"loras: {name!r} cannot be used: {type(error).__name__}: {said}") from error
        num_read, num_written = sum(map(len, layers.values())), _num_layers(path)
        if not num_read:
            raise LoraUnusable(f"loras: {name!r} cannot be used: it has no weights for a layer of this model")
        if num_read < num_written:
            logger.warning("adapter %r: this model has %d of its %d layers", name, num_read, num_written)
        return Adapter(name, layers, max(0, num_written - num_read))

    def _layers(self, path: Path) -> dict[str, dict[str, Layer]]:
        own = copy.copy(self._pipeline)
        copies = {name: _copied(one) for name, one in self._hollow.items()}
        vars(own).update(copies)
        # On no device, so that no layer is made of random numbers first: calls draw from the same generator.
        with _one_at_a_time, torch.device("meta"):
            getattr(own, LOADER)(
                str(path.parent),
                weight_name=path.name,
                adapter_name=NAME,
                use_safetensors=True,
                local_files_only=True,
            )
        layers: dict[str, dict[str, Layer]] = {}
        for component, module in copies.items():
            bases = dict(self._hollow[component].named_modules())
            found = {place: self._layer(place, one, bases, component) for place, one in _tuned(module)}
            if found:
                layers[component] = found
        return layers

    def _layer(self, place: str, tuned: Any, bases: Mapping[str, nn.Module], component: str) -> Layer:
        from peft.tuners.lora import Conv2d, Linear

        base = bases.get(place)
        if not isinstance(tuned, Linear | Conv2d) or not isinstance(base, nn.Linear | nn.Conv2d):
            kind = f"{type(tuned).__name__} of a {type(base).__name__}"
            raise _UnfitError(f"{place} is a {kind}; only LoRA of linear layers and convolutions is mixed")
        if tuned.use_dora.get(NAME) or NAME in getattr(tuned, "lora_variant", {}):
            raise _UnfitError(f"{place} is a variant of LoRA, such as DoRA, that is not mixed")
        down, up = tuned.lora_A[NAME], tuned.lora_B[NAME]
        if up.bias is not None or down.bias is not None:
            raise _UnfitError(f"{place} has a bias of its own")
        is_linear = isinstance(base, nn.Linear)
        wanted = (base.in_features, base.out_features) if is_linear else (base.in_channels, base.out_channels)
        groups = 1 if is_linear else base.groups
        fits = (down.weight.shape[1] * groups, up.weight.shape[0]) == wanted and groups == 1
        if not fits or down.weight.is_meta or up.weight.is_meta:
            raise _UnfitError(f"{place} has other inputs or outputs in this model")
        weights = [self._placed(one.weight.detach(), component) for one in (down, up)]
        scale = float(tuned.scaling[NAME])
        if is_linear:
            return Layer(weights[0].T, weights[1].T, scale)
        geometry = {name: getattr(base, name) for name in ("stride", "padding", "dilation")}
        return Layer(*weights, scale, geometry)

    def _placed(self, weight: Tensor, component: str) -> Tensor:
        return weight.to(self._device, self._dtypes[component]).contiguous()


def takes_adapters(pipeline: Any) -> bool:
    """Whether diffusers reads adapters for it: some of its classes say so whose denoisers do not."""
    parts = _modules(pipeline)
    denoiser = parts.get(denoiser_among(list(parts)) or "")
    return callable(getattr(pipeline, LOADER, None)) and hasattr(denoiser, "load_lora_adapter")


def _modules(pipeline: Any) -> dict[str, nn.Module]:
    return {name: one for name, one in pipeline.components.items() if isinstance(one, nn.Module)}


class _UnfitError(Exception):
    """Why an adapter cannot be used."""


def _num_layers(path: Path) -> int:
    """How many layers the file has weights for, by how its trainers name the first of a layer's two."""
    with safe_open(path, framework="pt") as file:
        return sum(name.endswith(DOWN_ENDINGS) for name in file.keys())  # noqa: SIM118


def _tuned(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers that diffusers' loader has put something beside, by their paths."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for place, one in module.named_modules():
        if isinstance(one, BaseTunerLayer):
            yield place, one


def _dtype_of(module: nn.Module) -> torch.dtype:
    """What its layers compute in; weights that are stored quantised say nothing of it."""
    dtypes = [getattr(module, "dtype", torch.float32), *(one.dtype for one in module.parameters())]
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


def _hollow(module: nn.Module) -> Any:
    """A copy with the shapes of its weights, and one number behind each of them."""
    number = torch.zeros((), dtype=_dtype_of(module))
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(number.expand(weight.shape), requires_grad=False)
        for weight in module.parameters()
    }
    memo |= {id(buffer): buffer for buffer in module.buffers()}
    copied = copy.deepcopy(module, memo)
    for one in copied.modules():
        vars(one).pop("_hf_hook", None)  # else the loader would move the modules that it belongs to
    return copied


def _copied(hollow: nn.Module) -> Any:
    """A copy that shares all tensors."""
    memo = {id(one): one for one in (*hollow.parameters(), *hollow.buffers())}
    return copy.deepcopy(hollow, memo)
