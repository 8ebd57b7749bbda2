"""Adds to each row of a forward pass what the adapters of its request add, and nothing to the others.

Hooks stand on the layers that some row of the pass changes, and only while it runs: what has no adapter runs
as if there were none in the world. A row's part is computed in an order of its own, so that its bits do not
depend on the rows beside it. It owns no adapter, and does not know which calls share a pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import conv2d

from engine.adapters.adapter import Applied, Layer, order_of

RowsKey = tuple[Any, ...]
MAX_ALIKE = 16384  # shapes that are remembered


class RowsUntoldError(RuntimeError):
    """A layer's input has no row for each image, so rows of different adapters cannot be told apart."""


@dataclass(frozen=True)
class Span:
    """Neighbouring rows of a pass that have the same adapters."""

    start: int
    stop: int
    applied: Applied


@dataclass(frozen=True)
class _Pass:
    """A forward pass: its rows, padding included, and who has which of them.

    `is_listed`: a row is an entry of a list, whose entries may differ in length. `is_partial`: a layer may be
    given the first rows alone.
    """

    num_rows: int
    spans: Sequence[Span]
    is_listed: bool
    is_partial: bool

    @property
    def is_uniform(self) -> bool:
        return len(self.spans) == 1 and self.spans[0].start == 0


class AdapterRows:
    """Applies adapters to the modules of `pipeline`, pass by pass."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._modules: dict[str, dict[str, Module]] = {}  # by component, and by path
        self._alike: dict[RowsKey, bool] = {}

    @contextmanager
    def applied(
        self,
        name: str,
        members: Sequence[tuple[Applied, int]],
        num_rows: int,
        *,
        is_listed: bool = False,
        is_partial: bool = False,
    ) -> Iterator[None]:
        """Let what runs inside, a pass of the module `name`, give each of its members what its adapters add.

        `members` are adapters and row counts in the order of the pass's `num_rows` rows. Raises
        `RowsUntoldError` inside.
        """
        spans = _spans(members)
        component = name.partition(".")[0]
        a_pass = _Pass(num_rows, spans, is_listed, is_partial)
        by_path: dict[str, list[tuple[Span, Layer, float]]] = {}
        for span in spans:
            for adapter, scale in span.applied:
                for path, layer in adapter.layers.get(component, {}).items():
                    by_path.setdefault(path, []).append((span, layer, scale * layer.scale))
        modules = self._modules_of(component) if by_path else {}
        hooks = [
            modules[path].register_forward_hook(partial(self._hook, a_pass, parts), with_kwargs=True)
            for path, parts in by_path.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _modules_of(self, component: str) -> dict[str, Module]:
        if component not in self._modules:
            self._modules[component] = dict(getattr(self._pipeline, component).named_modules())
        return self._modules[component]

    def _hook(
        self,
        a_pass: _Pass,
        parts: Sequence[tuple[Span, Layer, float]],
        module: Module,
        by_place: tuple[Any, ...],
        by_name: dict[str, Any],
        output: Tensor,
    ) -> Tensor:
        (given, *_), num_rows = (*by_place, *by_name.values()), a_pass.num_rows
        count = len(given)
        if a_pass.is_partial and count < num_rows:
            num_rows = count
        elif count % num_rows or (count != num_rows and a_pass.is_listed):
            if not a_pass.is_uniform:
                raise RowsUntoldError(f"{count} entries for {num_rows} rows in a {type(module).__name__}")
            num_rows, parts = 1, [(Span(0, 1, one.applied), layer, scale) for one, layer, scale in parts]
        is_linear = parts[0][1].geometry is None
        # Tokens may stand row after row in one dimension.
        rows = given.reshape(num_rows, -1, given.shape[-1]) if is_linear else given
        added_to = output.reshape(num_rows, -1, output.shape[-1]) if is_linear else output
        for span, layer, scale in parts:
            stop = min(span.stop, num_rows)
            if span.start < stop:
                self._add(added_to[span.start : stop], rows[span.start : stop], layer, scale)
        return added_to.reshape(output.shape)

    def _add(self, output: Tensor, rows: Tensor, layer: Layer, scale: float) -> None:
        """Add to `output`, in place, what the layer gives for these rows, each with the bits of a lone one.

        Kernels are chosen by shape, so that is seen at the first rows of a shape: where several at once do
        not give the bits of one after the other, it is one after the other from then on.
        """
        add = _add_linear if layer.geometry is None else _add_convolution
        if len(rows) == 1:
            add(output, rows, layer, scale)
            return
        key = (rows.shape, layer.down.shape, layer.up.shape, rows.dtype, layer.down.dtype, output.dtype)
        if len(self._alike) >= MAX_ALIKE:
            self._alike.clear()
        if key not in self._alike:
            together = output.clone()
            add(together, rows, layer, scale)
            _add_one_by_one(add, output, rows, layer, scale)
            self._alike[key] = torch.equal(together, output)
        elif self._alike[key]:
            add(output, rows, layer, scale)
        else:
            _add_one_by_one(add, output, rows, layer, scale)


def _spans(members: Sequence[tuple[Applied, int]]) -> list[Span]:
    spans: list[Span] = []
    start = 0
    for applied, count in members:
        if spans and spans[-1].stop == start and order_of(spans[-1].applied) == order_of(applied):
            spans[-1] = Span(spans[-1].start, start + count, applied)
        else:
            spans.append(Span(start, start + count, applied))
        start += count
    return spans


def _add_one_by_one(
    add: Callable[[Tensor, Tensor, Layer, float], None],
    output: Tensor,
    rows: Tensor,
    layer: Layer,
    scale: float,
) -> None:
    for row in range(len(rows)):
        add(output[row : row + 1], rows[row : row + 1], layer, scale)


def _add_linear(output: Tensor, rows: Tensor, layer: Layer, scale: float) -> None:
    """`output` `(R, T, out)` and `rows` `(R, T, in)`: a product for each row, and not one of all tokens."""
    down = torch.bmm(rows.to(layer.down.dtype), layer.down.expand(len(rows), -1, -1))
    up = layer.up.expand(len(rows), -1, -1)
    if output.dtype == up.dtype:
        output.baddbmm_(down, up, alpha=scale)
    else:
        output.add_(torch.bmm(down, up).to(output.dtype), alpha=scale)


def _add_convolution(output: Tensor, rows: Tensor, layer: Layer, scale: float) -> None:
    down = conv2d(rows.to(layer.down.dtype), layer.down, **(layer.geometry or {}))
    output.add_(conv2d(down, layer.up).to(output.dtype), alpha=scale)
