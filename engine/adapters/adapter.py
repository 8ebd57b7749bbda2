"""An adapter as it lies on the device: LoRA's two matrices for each layer that it changes.

`A` maps a layer's input to a few numbers and `B` maps these to its output (Hu et al. 2021, arXiv 2106.09685):
the layer then gives `W x + scale * B A x`. It knows no file and no pass.
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
    """What is added to one `Linear` or `Conv2d`.

    Of a `Linear` with `in` inputs and `out` outputs `down` is `(in, rank)` and `up` is `(rank, out)`. Of a
    convolution they are weights as `torch.nn.functional.conv2d` takes them, `down` with the `geometry` of the
    layer itself, by the names of its arguments.
    """

    down: Tensor
    up: Tensor
    scale: float  # of the file; a request's own scale comes on top
    geometry: Mapping[str, Any] | None = None

    @property
    def num_bytes(self) -> int:
        """What its tensors take."""
        return self.down.nbytes + self.up.nbytes


@dataclass(frozen=True, eq=False)
class Adapter:
    """Layers by a pipeline's component and by their paths in it; each reading of a file is another."""

    name: str
    layers: Mapping[str, Mapping[str, Layer]]
    num_unread: int = 0  # layers of its file that the model does not have
    number: int = field(default_factory=lambda: next(_numbers))

    @property
    def num_layers(self) -> int:
        """Layers that it changes."""
        return sum(map(len, self.layers.values()))

    @property
    def num_bytes(self) -> int:
        """What all its layers take."""
        return sum(layer.num_bytes for paths in self.layers.values() for layer in paths.values())

    @property
    def changes_texts(self) -> bool:
        """Whether it has layers of a text encoder."""
        return not all(map(is_denoiser, self.layers))


Applied = Sequence[tuple[Adapter, float]]
"""The adapters of one request, in its order, each with its scale."""


def order_of(applied: Applied) -> tuple[tuple[int, float], ...]:
    """Equal for equal adapters with equal scales: rows of one order stand side by side in a pass."""
    return tuple((adapter.number, scale) for adapter, scale in applied)


def texts_order_of(applied: Applied) -> tuple[tuple[int, float], ...]:
    """The same of those that change what a text encoder gives."""
    return order_of([(adapter, scale) for adapter, scale in applied if adapter.changes_texts])
