"""Bounds what is held for slow clients: above the limit, the slowest client is disconnected."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Holding:
    """The bytes that are held for one client."""

    def __init__(self, held: "Held", cut: Callable[[], None]) -> None:
        self._held = held
        self.cut = cut
        self.num_bytes = 0

    def grow(self, num_bytes: int) -> None:
        """Hold more bytes; above the bound, disconnect the slowest client, which may be this one."""
        self._held.add(self, num_bytes)

    def shrink(self, num_bytes: int) -> None:
        """Hold fewer bytes: the client made progress, and is now the last one to be disconnected."""
        self._held.take(self, num_bytes)


class Held:
    """All bytes of one kind that are held, at most `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._slowest_first: dict[Holding, None] = {}
        self.num_bytes = 0
        self.num_cut = 0
        self._num_kept_bytes = 0

    @contextmanager
    def holding(self, cut: Callable[[], None]) -> Iterator[Holding]:
        """Yield the account of one client while the body runs; `cut` closes the client's connection."""
        holding = Holding(self, cut)
        try:
            yield holding
        finally:
            self._forget(holding)

    @contextmanager
    def keeping(self, num_bytes: int) -> Iterator[None]:
        """Count bytes that are in use while the body runs; disconnecting their client would not free them."""
        self._num_kept_bytes += num_bytes
        self.num_bytes += num_bytes
        try:
            yield
        finally:
            self._num_kept_bytes -= num_bytes
            self.num_bytes -= num_bytes

    def is_in_use(self, num_bytes: int) -> bool:
        """Whether the bytes in use leave no room for this many, whoever else is disconnected."""
        return bool(self._num_kept_bytes) and self._num_kept_bytes + num_bytes > self._max_bytes

    def add(self, holding: Holding, num_bytes: int) -> None:
        """See `Holding.grow`."""
        self._slowest_first.setdefault(holding)
        holding.num_bytes += num_bytes
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes and self._slowest_first:
            slowest = next(iter(self._slowest_first))
            self._forget(slowest)
            self.num_cut += 1
            slowest.cut()

    def take(self, holding: Holding, num_bytes: int) -> None:
        """See `Holding.shrink`."""
        if holding in self._slowest_first:
            del self._slowest_first[holding]
            self._slowest_first[holding] = None
            holding.num_bytes -= num_bytes
            self.num_bytes -= num_bytes

    def _forget(self, holding: Holding) -> None:
        if holding in self._slowest_first:
            del self._slowest_first[holding]
            self.num_bytes -= holding.num_bytes
            holding.num_bytes = 0
