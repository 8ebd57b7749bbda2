"""The adapters of one model that are on its device: loaded on demand, within a bound of bytes.

Owns which of them are there, who uses them and which goes next: the least recently used that nobody uses.
Whoever asks first is served first where they do not all fit. Any thread may ask; files are read on the thread
of whoever asks. It knows neither a file's format nor a forward pass.
"""

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError

from catalogue.parameters import Lora
from engine.adapters.adapter import Adapter, Applied
from engine.errors import LoadError, LoraUnusable, RequestInvalid

logger = logging.getLogger(__name__)

MAX_BYTES = 2**30

Locate = Callable[[], Path]
"""The file of an adapter on this disk; raises `LoadError`."""


class Reader(Protocol):
    """What reads a file of adapters: see `AdapterReader`."""

    def num_bytes(self, path: Path) -> int:
        """What it will take."""

    def read(self, name: str, path: Path) -> Adapter:
        """The adapter; raises `LoraUnusable`."""


class Adapters:
    """At most `max_bytes` of the adapters that `files` has by name."""

    def __init__(self, reader: Reader, files: Mapping[str, Locate], max_bytes: int = MAX_BYTES) -> None:
        self._reader = reader
        self._files = files
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._reading = threading.Lock()  # held while a file is read, and before `_lock`
        self._kept: OrderedDict[str, Adapter] = OrderedDict()  # the most recently used is last
        self._users: Counter[str] = Counter()
        self._queue: list[object] = []  # who waits for room

    @property
    def num_bytes(self) -> int:
        """What those that are there take."""
        with self._lock:
            return sum(adapter.num_bytes for adapter in self._kept.values())

    @property
    def names(self) -> list[str]:
        """Those that are there, the least recently used first."""
        with self._lock:
            return list(self._kept)

    def check(self, loras: Sequence[Lora]) -> None:
        """Raise `RequestInvalid` for an adapter that the model has not."""
        for lora in loras:
            if lora.name not in self._files:
                known = ", ".join(self._files) or "none"
                raise RequestInvalid(f"loras: there is no adapter {lora.name!r}; the model has {known}")

    def hold(self, user: object, loras: Sequence[Lora], *, may_wait: bool) -> Applied | None:
        """The adapters, which stay until `user` lets go of them; None where there is no room for them yet.

        Files are read here. Unless it `may_wait`, it is None too while another thread reads one. Raises
        `LoraUnusable`, which names the adapter.
        """
        names = [lora.name for lora in loras]
        with self._lock:
            if self._queue and self._queue[0] is not user:
                self._wait(user)
                return None
            if all(name in self._kept for name in names):
                return self._held(user, loras)
        if not self._reading.acquire(blocking=may_wait):
            return None
        try:
            if not self._has_room(user, names):
                return None
            for name in names:
                if name not in self._kept:  # only who holds `_reading` adds or drops one
                    adapter = self._read(name)
                    with self._lock:
                        self._kept[name] = adapter
            with self._lock:
                return self._held(user, loras)
        except BaseException:
            self.leave_queue(user)
            raise
        finally:
            self._reading.release()

    def let_go(self, user: object, names: Iterable[str]) -> None:
        """Take note that `user`, who held these, needs them no more."""
        self.leave_queue(user)
        with self._lock:
            self._users.subtract(names)

    def leave_queue(self, user: object) -> None:
        """Take note that `user` wants none any more."""
        with self._lock:
            self._queue = [one for one in self._queue if one is not user]

    def free(self) -> None:
        """Let go of all that nobody uses, when the device is short of memory."""
        if not self._reading.acquire(blocking=False):
            return  # whoever reads needs what is there
        try:
            with self._lock:
                for name in [name for name in self._kept if not self._users[name]]:
                    del self._kept[name]
        finally:
            self._reading.release()

    def _held(self, user: object, loras: Sequence[Lora]) -> Applied:
        self._queue = [one for one in self._queue if one is not user]
        for lora in loras:
            self._users[lora.name] += 1
            self._kept.move_to_end(lora.name)
        return tuple((self._kept[lora.name], lora.scale) for lora in loras)

    def _wait(self, user: object) -> None:
        if not any(one is user for one in self._queue):
            self._queue.append(user)

    def _has_room(self, user: object, names: Sequence[str]) -> bool:
        """Make room for those that are not there; who has to wait for it is put into the queue."""
        sizes = {name: self._num_bytes(name) for name in names}
        if sum(sizes.values()) > self._max_bytes:
            raise LoraUnusable(
                f"loras: {', '.join(map(repr, names))} would take {sum(sizes.values())} bytes, more than"
                f" max_lora_bytes ({self._max_bytes})"
            )
        with self._lock:
            taken = sum(adapter.num_bytes for adapter in self._kept.values())
            taken += sum(size for name, size in sizes.items() if name not in self._kept)
            unused = [name for name in self._kept if not self._users[name] and name not in sizes]
            while taken > self._max_bytes and unused:
                taken -= self._kept.pop(unused.pop(0)).num_bytes
            if taken > self._max_bytes:
                self._wait(user)
            return taken <= self._max_bytes

    def _num_bytes(self, name: str) -> int:
        with self._lock:
            if name in self._kept:
                return self._kept[name].num_bytes
        try:
            return self._reader.num_bytes(self._path(name))
        except (SafetensorError, OSError, ValueError) as error:
            raise LoraUnusable(
                f"loras: {name!r} cannot be used: its file cannot be read ({_said(error)})"
            ) from error

    def _read(self, name: str) -> Adapter:
        adapter = self._reader.read(name, self._path(name))
        logger.info("adapter %r: %d bytes", name, adapter.num_bytes)
        return adapter

    def _path(self, name: str) -> Path:
        try:
            return self._files[name]()
        except LoadError as error:
            raise LoraUnusable(f"loras: {name!r} cannot be used: {error}") from error


def _said(error: Exception) -> str:
    """What an error says, without the path that the system adds: users see it."""
    return str(getattr(error, "strerror", None) or " ".join(str(error).split()))
