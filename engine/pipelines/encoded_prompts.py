"""What `encode_prompt` of diffusers pipelines has returned, kept for the next request that asks for the same.

Owns which calls of that method may be answered from an earlier one, and whom an entry answers: the account
that made it, or everybody where all its texts are empty. It knows no pipeline's class and no tensor's
meaning, and changes none: with or without it an image has the same bytes.
"""

import copy
import functools
import sys
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from engine.pipelines.least_recently_used import LeastRecentlyUsed

METHOD = "encode_prompt"
"""By this name diffusers' pipelines have the method that runs their text encoders."""

MAX_BYTES = 64 * 2**20
ENTRY_BYTES = 2048  # what Python needs for an entry besides its tensors and its text, rounded up
PLAIN = (type(None), bool, int, float, torch.device, torch.dtype)
ANYBODY = ""

OwnMethod = Callable[[Any, str], Callable[..., Any]]
"""Makes the `encode_prompt` of a call's pipeline; the text tells it from others of the same call."""


class EncodedPrompts:
    """Entries of all pipelines of one engine, within `max_bytes`; used on the engine thread alone."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._kept: LeastRecentlyUsed[Hashable, Any] = LeastRecentlyUsed(max_bytes)

    @property
    def num_bytes(self) -> int:
        """What the entries take."""
        return self._kept.num_bytes

    def of(self, account: str, model: str, adapters: Hashable = ()) -> OwnMethod:
        """Makes methods for one call; `adapters` are those that change what its text encoders give.

        Without an `account` nobody knows whose its texts are: none is kept.
        """
        return functools.partial(self._own_method, account, (model, adapters))

    def clear(self) -> None:
        """Give all of it back, when the device is short of memory."""
        self._kept.clear()

    def _own_method(self, account: str, model: Hashable, pipeline: Any, place: str) -> Callable[..., Any]:
        """In place of the `encode_prompt` of `pipeline`, which is one call's own and has not begun.

        What the call has written to its pipeline meanwhile, its guidance scale for one, counts as an
        argument, since `encode_prompt` may read it.
        """
        encode, untouched = pipeline.encode_prompt, dict(vars(pipeline))

        @functools.wraps(encode)  # pipelines may read its parameters
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
            return copy.deepcopy(kept)  # what a call does to its tensors is not done to another's

        return encode_prompt

    def _encode(self, pipeline: Any, encode: Callable[[], Any], key: Hashable, texts: list[str]) -> Any:
        """Encode, and keep what came of it if the same call would do exactly the same again.

        What draws from torch's global generator has other tensors at each seed, and leaves other noise to
        the rest of its call; what writes to its pipeline does more than return something.
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


class NotPlainError(Exception):
    """An argument is no plain value, such as a tensor or an image."""


def _is_new(name: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    return name not in before or now[name] is not before[name]


def _plain(value: Any, texts: list[str]) -> Hashable:
    """Equal for equal plain values of one type; `texts` gets all texts in it. Raises `NotPlainError`."""
    if type(value) is str:
        texts.append(value)
        return value
    if isinstance(value, PLAIN):
        return type(value), repr(value)  # 1, 1.0 and True are equal, as are 0.0 and -0.0
    if type(value) in (list, tuple):
        return type(value), tuple(_plain(one, texts) for one in value)
    if type(value) is dict and all(type(name) is str for name in value):
        return dict, tuple((name, _plain(value[name], texts)) for name in sorted(value))
    raise NotPlainError


def _holds_tensors(value: Any, storages: dict[int, int]) -> bool:
    """Whether it is tensors and plain values alone; `storages` gets the bytes behind each, by address."""
    if type(value) is Tensor:
        stored = value.untyped_storage()
        storages[stored.data_ptr()] = stored.nbytes()  # a view keeps all of it alive
        return True
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return all(_holds_tensors(one, storages) for one in value)
    return isinstance(value, (str, *PLAIN))
