"""Applies adapters to the rows of a forward pass whose requests have them, and changes no other row.

Hooks are set only on the layers that the pass's adapters change, and only while it runs, so passes without
adapters have no overhead. A row's adapters are applied in the order of its request, so that its bits do not
depend on the other rows. It does not own adapters, nor know which calls share a pass.
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
MAX_SHAPES = 16384  # most shapes whose exactness is remembered


class RowsUnknownError(RuntimeError):
    """A layer's input does not have one row per image, so it is unknown which adapters apply to which row."""


@dataclass(frozen=True)
class Span:
    """Adjacent rows of a pass that have the same adapters."""

    start: int
    stop: int
    applied: Applied


@dataclass(frozen=True)
class _Pass:
    """A forward pass: its number of rows, padding included, and the adapters of each.

    With `is_listed` the pass gets a list with one entry per row, and entries may differ in length. With
    `is_partial` a layer may get only the first rows.
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
        self._is_exact: dict[RowsKey, bool] = {}  # whether rows together have the bits of single rows

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
        """Apply the adapters of `members` to the pass of the module `name` that runs inside the block.

        `members` are the adapters and the row count of each batch member, in the order of the pass's
        `num_rows` rows. The pass raises `RowsUnknownError` if its rows cannot be separated.
        """
        spans = _spans(members)
        component = name.partition(".")[0]
        forward_pass = _Pass(num_rows, spans, is_listed, is_partial)
        by_path: dict[str, list[tuple[Span, Layer, float]]] = {}
        for span in spans:
            for adapter, scale in span.applied:
                for path, layer in adapter.layers.get(component, {}).items():
                    by_path.setdefault(path, []).append((span, layer, scale * layer.scale))
        modules = self._modules_of(component) if by_path else {}
        hooks = [
            modules[path].register_forward_hook(partial(self._hook, forward_pass, parts), with_kwargs=True)
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
        forward_pass: _Pass,
        parts: Sequence[tuple[Span, Layer, float]],
        module: Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> Tensor:
        (given, *_), num_rows = (*args, *kwargs.values()), forward_pass.num_rows
        count = len(given)
        if forward_pass.is_partial and count < num_rows:
            num_rows = count
        elif count % num_rows or (count != num_rows and forward_pass.is_listed):
            if not forward_pass.is_uniform:
                raise RowsUnknownError(f"{count} entries for {num_rows} rows in a {type(module).__name__}")
            num_rows, parts = 1, [(Span(0, 1, one.applied), layer, scale) for one, layer, scale in parts]
        is_linear = parts[0][1].geometry is None
        # The tokens of all rows may be in one dimension, one row after another.
        rows = given.reshape(num_rows, -1, given.shape[-1]) if is_linear else given
        added_to = output.reshape(num_rows, -1, output.shape[-1]) if is_linear else output
        for span, layer, scale in parts:
            stop = min(span.stop, num_rows)
            if span.start < stop:
                self._add(added_to[span.start : stop], rows[span.start : stop], layer, scale)
        return added_to.reshape(output.shape)

    def _add(self, output: Tensor, rows: Tensor, layer: Layer, scale: float) -> None:
        """Add the layer's result for `rows` to `output` in place; each row has the bits of a row alone.

        Kernels are chosen by shape. The first time a shape occurs, its rows are computed both together and
        one by one; if the bits differ, rows of this shape are computed one by one from then on.
        """
        add = _add_linear if layer.geometry is None else _add_convolution
        if len(rows) == 1:
            add(output, rows, layer, scale)
            return
        key = (rows.shape, layer.down.shape, layer.up.shape, rows.dtype, layer.down.dtype, output.dtype)
        if len(self._is_exact) >= MAX_SHAPES:
            self._is_exact.clear()
        if key not in self._is_exact:
            together = output.clone()
            add(together, rows, layer, scale)
            _add_one_by_one(add, output, rows, layer, scale)
            self._is_exact[key] = torch.equal(together, output)
        elif self._is_exact[key]:
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
    """Add to `output` `(R, T, out)` from `rows` `(R, T, in)`: one matrix product per row, not one for all."""
    down = torch.bmm(rows.to(layer.down.dtype), layer.down.expand(len(rows), -1, -1))
    up = layer.up.expand(len(rows), -1, -1)
    if output.dtype == up.dtype:
        output.baddbmm_(down, up, alpha=scale)
    else:
        output.add_(torch.bmm(down, up).to(output.dtype), alpha=scale)


def _add_convolution(output: Tensor, rows: Tensor, layer: Layer, scale: float) -> None:
    down = conv2d(rows.to(layer.down.dtype), layer.down, **(layer.geometry or {}))
    output.add_(conv2d(down, layer.up).to(output.dtype), alpha=scale)
