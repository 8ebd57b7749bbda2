"""Values within a bound of bytes: what was used least recently goes first. It knows no value's meaning."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LeastRecentlyUsed(Generic[K, V]):
    """At most `max_bytes` of values by key, as counted by who keeps them; used on one thread alone."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()  # the most recently used is last
        self.num_bytes = 0

    def get(self, key: K) -> V | None:
        """The value of `key`, which becomes the most recently used, or None."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def keep(self, key: K, value: V, num_bytes: int) -> None:
        """Keep a value of a new key, unless it is larger than the bound by itself."""
        if num_bytes > self._max_bytes:
            return
        self._kept[key] = (value, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            _, (_, num_freed_bytes) = self._kept.popitem(last=False)
            self.num_bytes -= num_freed_bytes

    def clear(self) -> None:
        """Let go of all values."""
        self._kept.clear()
        self.num_bytes = 0
