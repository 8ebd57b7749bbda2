"""An adapter on the device: the two LoRA matrices of each layer that it changes.

`A` maps a layer's input to `rank` numbers and `B` maps these to its output (Hu et al. 2021, arXiv
2106.09685): the layer then returns `W x + scale * B A x`. It knows nothing of files or forward passes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from torch import Tensor

from engine.pipelines.components import is_denoiser

_numbers = count(1)


@dataclass(frozen=True, eq=False)
class Layer:
    """The matrices for one `Linear` or `Conv2d`.

    For a `Linear` with `in` inputs and `out` outputs, `down` is `(in, rank)` and `up` is `(rank, out)`. For a
    convolution both are weights for `torch.nn.functional.conv2d`, and `geometry` has the layer's own stride,
    padding and dilation, which `down` uses.
    """

    down: Tensor
    up: Tensor
    scale: float  # from the file; multiplied by the request's scale
    geometry: Mapping[str, Any] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors on the device."""
        return self.down.nbytes + self.up.nbytes


@dataclass(frozen=True, eq=False)
class Adapter:
    """Layers by component of a pipeline and by path in it; each reading of a file gets its own `number`."""

    name: str
    layers: Mapping[str, Mapping[str, Layer]]
    num_unread: int = 0  # layers of the file that the model does not have
    number: int = field(default_factory=lambda: next(_numbers))

    @property
    def num_layers(self) -> int:
        """Number of layers that it changes."""
        return sum(map(len, self.layers.values()))

    @property
    def num_bytes(self) -> int:
        """Bytes of all its layers."""
        return sum(layer.num_bytes for paths in self.layers.values() for layer in paths.values())

    @property
    def changes_texts(self) -> bool:
        """Whether it changes a text encoder."""
        return not all(map(is_denoiser, self.layers))


Applied = Sequence[tuple[Adapter, float]]
"""The adapters of one request, in its order, each with its scale."""


def order_of(applied: Applied) -> tuple[tuple[int, float], ...]:
    """Return a sort key, equal for equal adapters and scales, that puts equal rows side by side in a pass."""
    return tuple((adapter.number, scale) for adapter, scale in applied)


def texts_order_of(applied: Applied) -> tuple[tuple[int, float], ...]:
    """Return the `order_of` the adapters that change a text encoder."""
    return order_of([(adapter, scale) for adapter, scale in applied if adapter.changes_texts])
