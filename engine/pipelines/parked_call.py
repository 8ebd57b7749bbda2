"""A call of a module that waits for its forward pass, and how several such calls share one pass.

A `ParkedCall` finds which of its arguments have a row for each image. `Merger` merges calls of equal
signature into one, and `split` returns each call's part of the output. It knows nothing of pipelines or the
engine.
"""

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

Kind = Literal["rows", "list", "row_values", "shared", "value"]
"""The kind of an argument's leaf: a tensor `(R, ...)` with a row for each of R images, a list of R tensors, a
list of R lists of values, a tensor that all rows share, or any other value. Leaves of the last three kinds
must be equal for calls to share a pass."""

PER_ROW_NUMBERS = frozenset({"timestep", "timesteps", "timestep_ratio", "time", "t", "sigma", "guidance"})
"""Arguments that diffusers' models take as one number or as a tensor `(R,)`."""

READ_FROM_ROW_0 = ("_ids", "_shapes", "_seq_lens", "_pos")
"""Suffixes of arguments of which models read row 0 for all rows (FLUX.2's ids, Qwen-Image's shapes), or which
have no rows although a single frame looks like one (Kandinsky 5's positions)."""

PLAIN = (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device)
BRANCHES = (dict, list, tuple)


class ParkedCall:
    """A call of the module `name` with `num_rows` rows; calls of equal `signature` can share a pass.

    With `has_float_numbers`, integers of `PER_ROW_NUMBERS` are converted to fp32, since a timestep is an
    integer in some schedulers and a float in others. With `has_one_layout`, tensors with rows are made
    contiguous: kernels are chosen by layout, which would otherwise depend on the other calls of the pass.
    """

    __slots__ = ("has_one_layout", "kinds", "leaves", "name", "num_rows", "signature", "spec")

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, Any],
        memory: "SharedTensors",
        *,
        has_float_numbers: bool = False,
        has_one_layout: bool = False,
    ) -> None:
        first: Any = next(iter(arguments.values()), None)
        is_listed = isinstance(first, list) and len(first) > 0 and isinstance(first[0], Tensor)
        has_rows = isinstance(first, Tensor) and first.ndim > 0
        self.name = name
        self.has_one_layout = has_one_layout
        self.num_rows: int = len(first) if is_listed else first.shape[0] if has_rows else 1
        self.leaves: list[Any] = []
        self.kinds: list[Kind] = []
        tokens: list[Any] = []
        spec = []
        for argument, value in arguments.items():
            if argument in PER_ROW_NUMBERS and isinstance(value, Tensor):
                if has_float_numbers and not value.is_floating_point():
                    value = value.to(torch.float32)
                if value.numel() == 1:
                    value = value.reshape(1).expand(self.num_rows)  # as the model would do
            if is_listed and isinstance(value, list) and len(value) == self.num_rows:
                self.leaves.append(value)
                self.kinds.append("list")
                tokens.append(_description(value[0]))
                spec.append((argument, None))
            elif isinstance(value, list) and len(value) == self.num_rows and isinstance(value[0], list):
                self.leaves.append(value)
                self.kinds.append("row_values")
                entries = [repr(one) for one in value]
                tokens.append(entries[0] if entries.count(entries[0]) == len(entries) else tuple(entries))
                spec.append((argument, None))
            else:
                spec.append((argument, self._add(argument, value, tokens, memory)))
        self.spec = (dict, tuple(spec))
        self.signature = (name, self.spec, tuple(tokens))

    def _add(self, argument: str, value: Any, tokens: list[Any], memory: "SharedTensors") -> Any:
        """Append the leaves of `value`; returns the spec from which `_built` restores `value`."""
        if isinstance(value, dict):
            return type(value), tuple(
                (key, self._add(argument, one, tokens, memory)) for key, one in value.items()
            )
        if isinstance(value, list | tuple):
            return type(value), tuple(self._add(argument, one, tokens, memory) for one in value)
        self.leaves.append(value)
        if not isinstance(value, Tensor):
            self.kinds.append("value")
            tokens.append(_description(value))
        elif value.ndim and value.shape[0] == self.num_rows and not argument.endswith(READ_FROM_ROW_0):
            if self.has_one_layout and value.ndim > 1:
                self.leaves[-1] = value.contiguous()
            self.kinds.append("rows")
            tokens.append((value.dtype, value.shape[1:]))
        else:
            self.kinds.append("shared")
            tokens.append(memory.token(len(self.leaves), value))
        return None

    def last_row(self, memory: "SharedTensors") -> "ParkedCall":
        """The same call with its last row only."""
        rows = ("rows", "list", "row_values")
        leaves = (
            leaf[-1:] if kind in rows else leaf for kind, leaf in zip(self.kinds, self.leaves, strict=True)
        )
        return ParkedCall(self.name, _built(self.spec, leaves), memory)

    def arguments(self) -> dict[str, Any]:
        """The arguments of this call by name."""
        named: dict[str, Any] = _built(self.spec, iter(self.leaves))
        return named


class SharedTensors:
    """Digests of the shared tensors of one pipeline call; a tensor that stays the same is hashed once."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Tensor, Any]] = {}

    def token(self, place: int, tensor: Tensor) -> Any:
        """A value that is equal for tensors of equal content; `place` is the leaf's number in its call."""
        seen = self._seen.get(place)
        if seen is not None and seen[0] is tensor:
            return seen[1]
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        token = (tensor.dtype, tensor.shape, hashlib.sha256(content.data).digest())
        self._seen[place] = (tensor, token)
        return token


class Merger:
    """Merges calls; keeps merged tensors, so that inputs which are the same at the next step are reused."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], tuple[list[Tensor], int, Tensor]] = {}

    def merge(self, calls: Sequence[ParkedCall], num_rows: int) -> dict[str, Any]:
        """The arguments of one call with the rows of all `calls`, which have equal signatures.

        The last row is repeated as padding up to `num_rows`: valid values raise no errors.
        """
        first = calls[0]
        num_padding = num_rows - sum(call.num_rows for call in calls)
        if len(calls) == 1 and not num_padding:
            return first.arguments()
        leaves: list[Any] = []
        for index, kind in enumerate(first.kinds):
            column = [call.leaves[index] for call in calls]
            if kind == "rows" and index == 0:  # the latents, which some pipelines change in place
                leaves.append(_concatenated(column, num_padding))
            elif kind == "rows":
                leaves.append(self._rows((first.name, index), column, num_padding))
            elif kind in ("list", "row_values"):
                entries = [entry for one in column for entry in one]
                leaves.append(entries + entries[-1:] * num_padding)
            else:
                leaves.append(column[0])
        named: dict[str, Any] = _built(first.spec, iter(leaves))
        return named

    def forget(self) -> None:
        """Free all kept tensors, for example when a call whose rows were merged has ended."""
        self._kept.clear()

    def _rows(self, place: tuple[str, int], parts: list[Tensor], num_padding: int) -> Tensor:
        kept = self._kept.get(place)
        if (
            kept is not None
            and kept[1] == num_padding
            and len(kept[0]) == len(parts)
            and all(one is other for one, other in zip(kept[0], parts, strict=True))
        ):
            return kept[2]
        merged = _concatenated(parts, num_padding)
        self._kept[place] = (parts, num_padding, merged)
        return merged


def _concatenated(parts: list[Tensor], num_padding: int) -> Tensor:
    padding = [parts[-1][-1:].expand(num_padding, *parts[-1].shape[1:])] if num_padding else []
    return torch.cat([*parts, *padding])


def split(output: Any, row_counts: Sequence[int], num_rows: int, *, is_listed: bool = False) -> list[Any]:
    """Split a module's `output` into parts for calls with these row counts.

    The output has `num_rows` rows, padding included. Tensors with an entry for each row are sliced, also
    inside objects such as the distribution of an encoded image; anything else is shared by all parts.
    `is_listed` says that the calls passed a list with an entry for each row, so that a list in the output has
    one too. Otherwise a list holds, for example, the outputs of a ControlNet's blocks, and may have
    `num_rows` entries by chance.
    """
    leaves: list[Any] = []
    spec = _taken_apart(output, num_rows if is_listed else None, leaves)
    parts, start = [], 0
    for count in row_counts:
        rows = slice(start, start + count)
        parts.append(_built(spec, (leaf[rows] if _has_rows(leaf, num_rows) else leaf for leaf in leaves)))
        start += count
    return parts


def doubled(output: Any, *, is_listed: bool = False) -> Any:
    """Repeat the output for one row as the output for two equal rows; `is_listed` as in `split`."""
    leaves: list[Any] = []
    spec = _taken_apart(output, 1 if is_listed else None, leaves)
    both = (
        leaf * 2 if isinstance(leaf, list) else torch.cat([leaf, leaf]) if _has_rows(leaf, 1) else leaf
        for leaf in leaves
    )
    return _built(spec, both)


def _taken_apart(value: Any, list_length: int | None, leaves: list[Any]) -> Any:
    is_row_list = isinstance(value, list) and list_length is not None and _has_rows(value, list_length)
    if isinstance(value, BRANCHES) and not is_row_list:
        if isinstance(value, dict):  # diffusers' and transformers' outputs are dicts as well
            return type(value), tuple(
                (key, _taken_apart(one, list_length, leaves)) for key, one in value.items()
            )
        return type(value), tuple(_taken_apart(one, list_length, leaves) for one in value)
    if held := _held_tensors(value):
        return HoldsTensors(value), tuple(
            (name, _taken_apart(held[name], list_length, leaves)) for name in held
        )
    leaves.append(value)
    return None


@dataclass(frozen=True, slots=True)
class HoldsTensors:
    """Part of a spec: an object with tensors; each part of a split gets a copy with its own rows."""

    object: Any


def _held_tensors(value: Any) -> dict[str, Tensor]:
    """The attributes of a plain object that are tensors."""
    if isinstance(value, Tensor | Module | type) or not hasattr(value, "__dict__"):
        return {}
    return {name: one for name, one in vars(value).items() if isinstance(one, Tensor)}


def _has_rows(leaf: Any, num_rows: int) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.ndim > 0 and leaf.shape[0] == num_rows
    return isinstance(leaf, list) and len(leaf) == num_rows and isinstance(leaf[0], Tensor)


def _built(spec: Any, leaves: Iterator[Any]) -> Any:
    if spec is None:
        return next(leaves)
    made, members = spec
    if isinstance(made, HoldsTensors):
        own = copy.copy(made.object)
        vars(own).update({name: _built(member, leaves) for name, member in members})
        return own
    if issubclass(made, dict):
        named = {key: _built(member, leaves) for key, member in members}
        return named if made is dict else made(**named)
    return made(_built(member, leaves) for member in members)


def _description(value: Any) -> Any:
    """A key that is equal for equal plain values of one type; any other object equals only itself."""
    if isinstance(value, Tensor):
        return value.dtype, value.ndim  # of a list of tensors: entries of any length share a pass
    if not isinstance(value, PLAIN):
        return id(value)  # the call keeps the object alive, so the id is not reused
    return type(value), value
