"""Pads texts to a few lengths, so that calls with prompts of different lengths can share forward passes.

Owns the places in a module's arguments whose size depends on the length of a text, and the lengths to pad to.
It does not know how they were found, nor which calls share a pass.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

MAX_KEPT = 16
"""The most padded tensors that one call keeps for its next step, which has the same inputs."""

Fill = Literal["zeros", "mask", "missing mask", "continued"]
FILLS: tuple[Fill, ...] = ("zeros", "mask", "missing mask", "continued")


@dataclass(frozen=True, slots=True)
class TextPlace:
    """An argument of `module` with a size of text length + `num_others` along `dimension`.

    `path` is the argument's name and the keys inside it, joined by slashes. `fill` says how it is padded:
    with zeros; as a mask, with zeros; by making a mask that the pipeline omits, with ones for the text; or by
    continuing its positions.
    """

    module: str
    path: str
    dimension: int
    num_others: int
    fill: Fill

    def length_in(self, value: Any) -> int | None:
        """The length of the text in `value`; None if the argument has another form than in the self-test."""
        if not isinstance(value, Tensor) or value.ndim <= self.dimension:
            return None
        return value.shape[self.dimension] - self.num_others

    def padded(self, value: Any, text: Tensor, length: int, target: int) -> Tensor | None:
        """The argument padded to `target`; None if it has another form than in the self-test."""
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
        head, tail = places[:length], places[length:]  # in a mask for text and image, the text is first
        if self.fill == "continued":
            step = head[-1] - head[-2] if length > 1 else torch.zeros_like(head[-1])
            counts = torch.arange(1, target - length + 1, device=head.device, dtype=head.dtype)
            added = head[-1] + counts.view(-1, *[1] * (head.ndim - 1)) * step
        else:
            added = head.new_zeros(target - length, *head.shape[1:])
        return torch.cat([head, added, tail]).movedim(0, self.dimension).contiguous()


@dataclass(frozen=True)
class TextPadding:
    """How to pad the texts of a pipeline's calls to one of `lengths`; a module's first place is its text."""

    places: tuple[TextPlace, ...]
    lengths: tuple[int, ...]

    def of_call(self) -> "PaddedCall":
        """Return an object that pads the arguments of one call."""
        return PaddedCall(self)

    def plain(self) -> dict[str, Any]:
        """A JSON document of it."""
        return {"places": [asdict(place) for place in self.places], "lengths": list(self.lengths)}

    @classmethod
    def of_plain(cls, document: Any) -> Self:
        """Read the output of `plain`; raises `ValueError` for anything else."""
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
    """Pads the arguments of one call; an unchanged argument gives the same padded tensor at every step."""

    def __init__(self, padding: TextPadding) -> None:
        self._lengths = padding.lengths
        self._places: dict[str, list[TextPlace]] = {}
        for place in padding.places:
            self._places.setdefault(place.module, []).append(place)
        self._kept: dict[tuple[str, str, int], tuple[Any, Tensor]] = {}

    def padded(self, module: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments with their text padded.

        They are returned unchanged if the text exceeds all lengths, or if an argument has another form than
        in the self-test; such a call shares passes only with calls of equal length.
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
        if kept is not None:  # the source is kept too, so its id is not reused
            return kept[1]
        tensor = place.padded(value, text, length, target)
        if tensor is not None:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[key] = (source, tensor)
        return tensor


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested arguments with their paths."""
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
    """The value with the changed leaves; a part without changed leaves stays the same object."""
    if path in changed:
        return changed[path]
    if not any(one.startswith(f"{path}/") for one in changed):
        return value
    if isinstance(value, Mapping):
        return {key: _replaced(f"{path}/{key}", member, changed) for key, member in value.items()}
    return type(value)(_replaced(f"{path}/{index}", member, changed) for index, member in enumerate(value))
