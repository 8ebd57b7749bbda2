"""A cache of what `encode_prompt` of diffusers pipelines returns, for requests with the same prompt.

Owns the rule of which calls may be answered from the cache. An entry is used only for the account that made
it, or for every account if all its texts are empty. It knows neither pipeline classes nor what tensors mean;
an image has the same bytes with or without the cache.
"""

import copy
import functools
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

METHOD = "encode_prompt"
"""The method of diffusers' pipelines that runs their text encoders."""

MAX_BYTES = 64 * 2**20
ENTRY_BYTES = 2048  # memory of an entry besides its tensors and texts, rounded up
PLAIN = (type(None), bool, int, float, torch.device, torch.dtype)
ANYBODY = ""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

OwnMethod = Callable[[Any, str], Callable[..., Any]]
"""Makes the `encode_prompt` of a call's pipeline; the string tells nested pipelines of one call apart."""


class EncodedPrompts:
    """The cache of one engine, for all its pipelines, within `max_bytes`; only for the engine thread."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._kept: _LeastRecentlyUsed[Hashable, Any] = _LeastRecentlyUsed(max_bytes)

    @property
    def num_bytes(self) -> int:
        """The size of all entries."""
        return self._kept.num_bytes

    def of(self, account: str, model: str, adapters: Hashable = ()) -> OwnMethod:
        """Return a function that makes the `encode_prompt` of one call.

        `adapters` are those that change its text encoders. Without an `account` only empty texts are cached.
        """
        return functools.partial(self._own_method, account, (model, adapters))

    def clear(self) -> None:
        """Drop all entries, when the device is short of memory."""
        self._kept.clear()

    def _own_method(self, account: str, model: Hashable, pipeline: Any, place: str) -> Callable[..., Any]:
        """A replacement for `encode_prompt` of `pipeline`, the copy that belongs to one call.

        Attributes that the call has set on its pipeline since then, such as its guidance scale, count as
        arguments, since `encode_prompt` may read them.
        """
        encode, untouched = pipeline.encode_prompt, dict(vars(pipeline))

        @functools.wraps(encode)  # pipelines may inspect its signature
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            now = vars(pipeline)
            written = {name: now[name] for name in now if name != METHOD and _is_new(name, now, untouched)}
            texts: list[str] = []
            try:
                asked = _plain([args, kwargs, written], texts)
            except NotPlainError:
                return encode(*args, **kwargs)
            owner = account if any(texts) else ANYBODY
            if any(texts) and not account:
                return encode(*args, **kwargs)
            key = (owner, model, place, asked)
            kept = self._kept.get(key)
            if kept is None:
                return self._encode(pipeline, functools.partial(encode, *args, **kwargs), key, texts)
            return copy.deepcopy(kept)  # a call may change its tensors in place

        return encode_prompt

    def _encode(self, pipeline: Any, encode: Callable[[], Any], key: Hashable, texts: list[str]) -> Any:
        """Encode, and cache the result if an equal call would do exactly the same.

        It would not if encoding draws from torch's global generator, since the result and the later noise
        then depend on the seed, or if it sets attributes of its pipeline.
        """
        noise, before = torch.get_rng_state(), dict(vars(pipeline))
        encoded = encode()
        now = vars(pipeline)
        wrote = now.keys() != before.keys() or any(_is_new(name, now, before) for name in now)
        storages: dict[int, int] = {}
        if not wrote and torch.equal(noise, torch.get_rng_state()) and _holds_tensors(encoded, storages):
            num_bytes = ENTRY_BYTES + sum(storages.values()) + sum(map(sys.getsizeof, texts))
            self._kept.keep(key, copy.deepcopy(encoded), num_bytes)
        return encoded


class _LeastRecentlyUsed(Generic[K, V]):
    """Values by key, at most `max_bytes` in total; the least recently used are dropped. Not thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()  # least recently used first
        self.num_bytes = 0

    def get(self, key: K) -> V | None:
        """Return the value of `key` and mark it as most recently used; None if there is none."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def keep(self, key: K, value: V, num_bytes: int) -> None:
        """Add the value of a new key, unless it alone exceeds `max_bytes`."""
        if num_bytes > self._max_bytes:
            return
        self._kept[key] = (value, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            _, (_, num_freed_bytes) = self._kept.popitem(last=False)
            self.num_bytes -= num_freed_bytes

    def clear(self) -> None:
        """Drop all values."""
        self._kept.clear()
        self.num_bytes = 0


class NotPlainError(Exception):
    """An argument is not a plain value: for example a tensor or an image."""


def _is_new(name: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    return name not in before or now[name] is not before[name]


def _plain(value: Any, texts: list[str]) -> Hashable:
    """A key that is equal for equal values of one type. Appends all strings in it to `texts`."""
    if type(value) is str:
        texts.append(value)
        return value
    if isinstance(value, PLAIN):
        return type(value), repr(value)  # type and text, because 1 == 1.0 == True and 0.0 == -0.0
    if type(value) in (list, tuple):
        return type(value), tuple(_plain(one, texts) for one in value)
    if type(value) is dict and all(type(name) is str for name in value):
        return dict, tuple((name, _plain(value[name], texts)) for name in sorted(value))
    raise NotPlainError


def _holds_tensors(value: Any, storages: dict[int, int]) -> bool:
    """Whether it consists of tensors and plain values; adds the size of each storage by address."""
    if type(value) is Tensor:
        stored = value.untyped_storage()
        storages[stored.data_ptr()] = stored.nbytes()  # a view keeps its whole storage alive
        return True
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return all(_holds_tensors(one, storages) for one in value)
    return isinstance(value, (str, *PLAIN))
