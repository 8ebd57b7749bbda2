"""Pads texts of different lengths to a few lengths, so that calls of one pipeline can share forward passes.

Owns the places in a module's arguments where the length of a text shows, and the lengths that texts are
padded to. It does not know how either was found, nor which calls share a pass.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

MAX_KEPT = 16
"""Padded tensors that one call keeps; those of a step are the same at the next."""

Fill = Literal["zeros", "mask", "missing mask", "continued"]
FILLS: tuple[Fill, ...] = ("zeros", "mask", "missing mask", "continued")


@dataclass(frozen=True, slots=True)
class TextPlace:
    """An argument of `module` whose length along `dimension` is that of the text, and of `num_others` more.

    `path` names the argument and its members, joined by slashes. `fill` says what a text is padded with
    there: zeros; zeros of a mask; a mask that the pipeline leaves out, made with ones for the text; or
    positions that go on as they began.
    """

    module: str
    path: str
    dimension: int
    num_others: int
    fill: Fill

    def length_in(self, value: Any) -> int | None:
        """How long the text in `value` is; None where the argument has another form than at the test."""
        if not isinstance(value, Tensor) or value.ndim <= self.dimension:
            return None
        return value.shape[self.dimension] - self.num_others

    def padded(self, value: Any, text: Tensor, length: int, target: int) -> Tensor | None:
        """The argument for a text padded to `target`; None where it has another form than at the test."""
        if self.fill == "missing mask":
            if value is not None:
                return None
            mask = torch.arange(target, device=text.device) < length
            return mask.expand(text.shape[0], target)
        if self.length_in(value) != length:
            return None
        if length == target:
            kept: Tensor = value
            return kept
        places = value.movedim(self.dimension, 0)
        head, tail = places[:length], places[length:]  # a mask of text and image begins with the text
        if self.fill == "continued":
            step = head[-1] - head[-2] if length > 1 else torch.zeros_like(head[-1])
            counts = torch.arange(1, target - length + 1, device=head.device, dtype=head.dtype)
            added = head[-1] + counts.view(-1, *[1] * (head.ndim - 1)) * step
        else:
            added = head.new_zeros(target - length, *head.shape[1:])
        return torch.cat([head, added, tail]).movedim(0, self.dimension).contiguous()


@dataclass(frozen=True)
class TextPadding:
    """Pads the texts of a pipeline's calls to one of `lengths`; a module's first place is its text."""

    places: tuple[TextPlace, ...]
    lengths: tuple[int, ...]

    def of_call(self) -> "PaddedCall":
        """What pads the arguments of one call."""
        return PaddedCall(self)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {"places": [asdict(place) for place in self.places], "lengths": list(self.lengths)}

    @classmethod
    def of_plain(cls, document: Any) -> Self:
        """What `plain` made; raises `ValueError` for anything else."""
        try:
            places = tuple(TextPlace(**place) for place in document["places"])
            lengths = tuple(document["lengths"])
            is_sound = all(map(_is_sound, places)) and all(type(one) is int and one > 0 for one in lengths)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a padding of texts ({type(error).__name__}: {error})") from error
        if not is_sound or not places or not lengths or list(lengths) != sorted(set(lengths)):
            raise ValueError("not a padding of texts: a value is out of bounds")
        return cls(places, lengths)


def _is_sound(place: TextPlace) -> bool:
    numbers = (place.dimension, place.num_others)
    return (
        isinstance(place.module, str)
        and isinstance(place.path, str)
        and all(type(one) is int and one >= 0 for one in numbers)
        and place.fill in FILLS
    )


class PaddedCall:
    """Pads the arguments of one call, and keeps what it has padded: tensors stay the same between steps."""

    def __init__(self, padding: TextPadding) -> None:
        self._lengths = padding.lengths
        self._places: dict[str, list[TextPlace]] = {}
        for place in padding.places:
            self._places.setdefault(place.module, []).append(place)
        self._kept: dict[tuple[str, str, int], tuple[Any, Tensor]] = {}

    def padded(self, module: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments with their text padded, or as they are.

        So they stay where the text is longer than all lengths, or an argument has another form than at the
        test: such a call shares passes with its like alone.
        """
        places = self._places.get(module)
        if places is None:
            return arguments
        by_path = dict(leaves(arguments))
        text = by_path.get(places[0].path)
        length = places[0].length_in(text)
        target = next((one for one in self._lengths if length is not None and one >= length), None)
        if length is None or target is None:
            return arguments
        changed = {}
        for place in places:
            value = by_path.get(place.path)
            if (tensor := self._padded(place, value, by_path[places[0].path], length, target)) is None:
                return arguments
            changed[place.path] = tensor
        return {name: _replaced(name, value, changed) for name, value in arguments.items()}

    def _padded(self, place: TextPlace, value: Any, text: Tensor, length: int, target: int) -> Tensor | None:
        source = text if value is None else value
        key = (place.module, place.path, id(source))
        kept = self._kept.get(key)
        if kept is not None:  # the source is kept as well, so that its id is its own
            return kept[1]
        tensor = place.padded(value, text, length, target)
        if tensor is not None:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[key] = (source, tensor)
        return tensor


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested arguments by path."""
    if isinstance(value, Mapping):
        members: Any = value.items()
    elif isinstance(value, list | tuple):
        members = enumerate(value)
    else:
        yield path, value
        return
    for key, member in members:
        yield from leaves(member, f"{path}/{key}" if path else str(key))


def _replaced(path: str, value: Any, changed: Mapping[str, Any]) -> Any:
    """The same with the changed leaves; what has none of them stays the same object."""
    if path in changed:
        return changed[path]
    if not any(one.startswith(f"{path}/") for one in changed):
        return value
    if isinstance(value, Mapping):
        return {key: _replaced(f"{path}/{key}", member, changed) for key, member in value.items()}
    return type(value)(_replaced(f"{path}/{index}", member, changed) for index, member in enumerate(value))
