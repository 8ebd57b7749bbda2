"""Reads an `Adapter` from a safetensors file of LoRA weights, in any format that diffusers reads.

diffusers' own loader reads the file into a copy of the pipeline's modules without weights, and the layers are
extracted from the copy. The modules in use are never changed, so any thread may read an adapter while they
run. It does not know which adapters are on the device.
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
from engine.device_work import translate
from engine.errors import LoadError, LoraUnusable, OutOfMemory
from engine.pipelines.components import denoiser_among

logger = logging.getLogger(__name__)
NAME = "adapter"  # the name of the only adapter in a copy
LOADER = "load_lora_weights"
WITHOUT_ADAPTERS = ("vae",)
DOWN_ENDINGS = ("lora_A.weight", "lora_down.weight", "lora.down.weight", "lora_linear_layer.down.weight")
# diffusers warns for each component that a file has no weights for, and for each layer that does not fit. The
# first is normal, and the caller gets an error for the second.
for _loader in ("lora_base", "peft"):
    logging.getLogger(f"diffusers.loaders.{_loader}").setLevel(logging.CRITICAL)
_one_at_a_time = threading.Lock()
"""Held while any model's adapter is read, since peft then patches methods of torch's modules."""
MAX_SAID = 300  # characters of a library's message that are kept


class AdapterReader:
    """Reads adapters for `pipeline` onto `device`; raises `LoadError` if it does not support adapters."""

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        if not takes_adapters(pipeline):
            raise LoadError(f"loras: diffusers cannot load them for a {type(pipeline).__name__}")
        self._device = device
        # Shapes show whether a layer fits, and later passes do not change them.
        self._shapes = {
            name: _without_weights(module)
            for name, module in _modules(pipeline).items()
            if name not in WITHOUT_ADAPTERS
        }
        self._pipeline = copy.copy(pipeline)
        self._dtypes = {name: _dtype_of(one) for name, one in self._shapes.items()}

    def num_bytes(self, path: Path) -> int:
        """Return the bytes that its tensors will use on the device; reads only the header of the file."""
        size = max(dtype.itemsize for dtype in self._dtypes.values())
        with safe_open(path, framework="pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        return sum(size * int(torch.Size(shape).numel()) for shape in shapes)

    def read(self, name: str, path: Path) -> Adapter:
        """Return the adapter of that file; raises `LoraUnusable` if this model cannot use it."""
        try:
            layers = self._layers(path)
        except _UnsupportedError as error:
            raise LoraUnusable(f"loras: {name!r} cannot be used: {error}") from error
        except Exception as error:  # the libraries may raise any exception for a broken file
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
        copies = {name: _copied(one) for name, one in self._shapes.items()}
        vars(own).update(copies)
        # On the meta device, so that no layer is initialized at random: calls use the same global generator.
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
            bases = dict(self._shapes[component].named_modules())
            found = {place: self._layer(place, one, bases, component) for place, one in _tuned(module)}
            if found:
                layers[component] = found
        return layers

    def _layer(self, place: str, tuned: Any, bases: Mapping[str, nn.Module], component: str) -> Layer:
        from peft.tuners.lora import Conv2d, Linear

        base = bases.get(place)
        if not isinstance(tuned, Linear | Conv2d) or not isinstance(base, nn.Linear | nn.Conv2d):
            kind = f"{type(tuned).__name__} of a {type(base).__name__}"
            raise _UnsupportedError(f"{place} is a {kind}; LoRA must be on linear layers or convolutions")
        if tuned.use_dora.get(NAME) or NAME in getattr(tuned, "lora_variant", {}):
            raise _UnsupportedError(f"{place} is a variant of LoRA, such as DoRA, that is not supported")
        down, up = tuned.lora_A[NAME], tuned.lora_B[NAME]
        if up.bias is not None or down.bias is not None:
            raise _UnsupportedError(f"{place} has a bias of its own")
        is_linear = isinstance(base, nn.Linear)
        wanted = (base.in_features, base.out_features) if is_linear else (base.in_channels, base.out_channels)
        groups = 1 if is_linear else base.groups
        fits = (down.weight.shape[1] * groups, up.weight.shape[0]) == wanted and groups == 1
        if not fits or down.weight.is_meta or up.weight.is_meta:
            raise _UnsupportedError(f"{place} has a different number of inputs or outputs in this model")
        weights = [self._on_device(one.weight.detach(), component) for one in (down, up)]
        scale = float(tuned.scaling[NAME])
        if is_linear:
            return Layer(weights[0].T, weights[1].T, scale)
        geometry = {name: getattr(base, name) for name in ("stride", "padding", "dilation")}
        return Layer(*weights, scale, geometry)

    def _on_device(self, weight: Tensor, component: str) -> Tensor:
        return weight.to(self._device, self._dtypes[component]).contiguous()


def takes_adapters(pipeline: Any) -> bool:
    """Whether diffusers can load adapters into the pipeline and also into its denoiser."""
    parts = _modules(pipeline)
    denoiser = parts.get(denoiser_among(list(parts)) or "")
    return callable(getattr(pipeline, LOADER, None)) and hasattr(denoiser, "load_lora_adapter")


def _modules(pipeline: Any) -> dict[str, nn.Module]:
    return {name: one for name, one in pipeline.components.items() if isinstance(one, nn.Module)}


class _UnsupportedError(Exception):
    """An adapter that this model cannot use; the message is the reason."""


def _num_layers(path: Path) -> int:
    """Return the number of layers in the file, counted by the names of their down matrices."""
    with safe_open(path, framework="pt") as file:
        return sum(name.endswith(DOWN_ENDINGS) for name in file.keys())  # noqa: SIM118


def _tuned(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the path and the module of each layer to which diffusers' loader has added an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for place, one in module.named_modules():
        if isinstance(one, BaseTunerLayer):
            yield place, one


def _dtype_of(module: nn.Module) -> torch.dtype:
    """Return the dtype that the layers compute in; quantized weights are stored in a different one."""
    dtypes = [getattr(module, "dtype", torch.float32), *(one.dtype for one in module.parameters())]
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


def _without_weights(module: nn.Module) -> Any:
    """Return a copy whose weights have the same shapes and share the memory of a single element."""
    number = torch.zeros((), dtype=_dtype_of(module))
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(number.expand(weight.shape), requires_grad=False)
        for weight in module.parameters()
    }
    memo |= {id(buffer): buffer for buffer in module.buffers()}
    copied = copy.deepcopy(module, memo)
    for one in copied.modules():
        vars(one).pop("_hf_hook", None)  # otherwise the loader would move the hook's modules
    return copied


def _copied(module: nn.Module) -> Any:
    """Return a copy that shares all tensors."""
    memo = {id(one): one for one in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo)
