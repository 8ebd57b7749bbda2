"""Keeps the adapters of one model on its device: loads them on demand, within a limit of bytes.

Owns which adapters are loaded, which are in use, and which is evicted next: the least recently used that is
not in use. When not all fit, users are served in the order of their requests. Any thread may ask for
adapters, and files are read on that thread. It knows neither file formats nor forward passes.
"""

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError

from catalogue.parameters import Lora
from catalogue.warnings import RequestWarning
from engine.adapters.adapter import Adapter, Applied
from engine.errors import LoadError, LoraUnusable, RequestInvalid
from engine.request import GenerationRequest

logger = logging.getLogger(__name__)

MAX_BYTES = 2**30

Locate = Callable[[], Path]
"""Returns the path of an adapter's file on this disk; raises `LoadError`."""


class Reader(Protocol):
    """Reads the file of an adapter, as `AdapterReader` does."""

    def num_bytes(self, path: Path) -> int:
        """Return the bytes that the adapter will use on the device."""

    def read(self, name: str, path: Path) -> Adapter:
        """Return the adapter; raises `LoraUnusable`."""


class Adapters:
    """The adapters in `files`, by name, of which at most `max_bytes` are loaded at a time."""

    def __init__(self, reader: Reader, files: Mapping[str, Locate], max_bytes: int = MAX_BYTES) -> None:
        self._reader = reader
        self._files = files
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._reading = threading.Lock()  # held while a file is read, and before `_lock`
        self._loaded: OrderedDict[str, Adapter] = OrderedDict()  # the most recently used is last
        self._users: Counter[str] = Counter()
        self._queue: list[object] = []  # users that wait for room

    @property
    def num_bytes(self) -> int:
        """Bytes of the loaded adapters."""
        with self._lock:
            return sum(adapter.num_bytes for adapter in self._loaded.values())

    @property
    def names(self) -> list[str]:
        """The loaded adapters, the least recently used first."""
        with self._lock:
            return list(self._loaded)

    def check(self, request: GenerationRequest) -> None:
        """Raise `RequestInvalid` for an adapter that the model does not have."""
        for lora in asked_by(request):
            if lora.name not in self._files:
                known = ", ".join(self._files) or "none"
                raise RequestInvalid(f"loras: there is no adapter {lora.name!r}; the model has {known}")

    def hold(self, user: object, asked: Sequence[Lora], *, may_wait: bool) -> Applied | None:
        """Return the adapters, which stay loaded until `user` releases them; None if there is no room yet.

        Reads their files if needed. With `may_wait` false it also returns None while another thread reads a
        file. Raises `LoraUnusable`, which names the adapter.
        """
        names = [lora.name for lora in asked]
        with self._lock:
            if self._queue and self._queue[0] is not user:
                self._wait(user)
                return None
            if all(name in self._loaded for name in names):
                return self._held(user, asked)
        if not self._reading.acquire(blocking=may_wait):
            return None
        try:
            if not self._has_room(user, names):
                return None
            for name in names:
                if name not in self._loaded:  # only a thread that holds `_reading` adds or removes adapters
                    adapter = self._read(name)
                    with self._lock:
                        self._loaded[name] = adapter
            with self._lock:
                return self._held(user, asked)
        except BaseException:
            self.leave_queue(user)
            raise
        finally:
            self._reading.release()

    def release(self, user: object, names: Iterable[str]) -> None:
        """Release the adapters that `user` holds."""
        self.leave_queue(user)
        with self._lock:
            self._users.subtract(names)

    def leave_queue(self, user: object) -> None:
        """Remove `user` from the queue for room."""
        with self._lock:
            self._queue = [one for one in self._queue if one is not user]

    def free(self) -> None:
        """Evict all adapters that are not in use, when the device is short of memory."""
        if not self._reading.acquire(blocking=False):
            return  # a thread that reads an adapter needs the others of its request
        try:
            with self._lock:
                for name in [name for name in self._loaded if not self._users[name]]:
                    del self._loaded[name]
        finally:
            self._reading.release()

    def _held(self, user: object, asked: Sequence[Lora]) -> Applied:
        self._queue = [one for one in self._queue if one is not user]
        for lora in asked:
            self._users[lora.name] += 1
            self._loaded.move_to_end(lora.name)
        return tuple((self._loaded[lora.name], lora.scale) for lora in asked)

    def _wait(self, user: object) -> None:
        if not any(one is user for one in self._queue):
            self._queue.append(user)

    def _has_room(self, user: object, names: Sequence[str]) -> bool:
        """Make room for the adapters that are not loaded; if there is none yet, put `user` into the queue."""
        sizes = {name: self._num_bytes(name) for name in names}
        if sum(sizes.values()) > self._max_bytes:
            raise LoraUnusable(
                f"loras: {', '.join(map(repr, names))} would use {sum(sizes.values())} bytes, more than"
                f" max_lora_bytes ({self._max_bytes})"
            )
        with self._lock:
            taken = sum(adapter.num_bytes for adapter in self._loaded.values())
            taken += sum(size for name, size in sizes.items() if name not in self._loaded)
            unused = [name for name in self._loaded if not self._users[name] and name not in sizes]
            while taken > self._max_bytes and unused:
                taken -= self._loaded.pop(unused.pop(0)).num_bytes
            if taken > self._max_bytes:
                self._wait(user)
            return taken <= self._max_bytes

    def _num_bytes(self, name: str) -> int:
        with self._lock:
            if name in self._loaded:
                return self._loaded[name].num_bytes
        try:
            return self._reader.num_bytes(self._path(name))
        except (SafetensorError, OSError, ValueError) as error:
            raise LoraUnusable(
                f"loras: {name!r} cannot be used: its file cannot be read ({_said(error)})"
            ) from error

    def _read(self, name: str) -> Adapter:
        adapter = self._reader.read(name, self._path(name))
        logger.info("adapter %r loaded: %d bytes", name, adapter.num_bytes)
        return adapter

    def _path(self, name: str) -> Path:
        try:
            return self._files[name]()
        except LoadError as error:
            raise LoraUnusable(f"loras: {name!r} cannot be used: {error}") from error


def asked_by(request: GenerationRequest) -> tuple[Lora, ...]:
    """The adapters that a request asks for, each with its scale."""
    return request.parameters.loras


def warnings_of(applied: Applied) -> list[RequestWarning]:
    """A warning for each adapter that has layers which the model does not have."""
    warnings = []
    for adapter, _ in applied:
        if adapter.num_unread:
            num_written = adapter.num_layers + adapter.num_unread
            partly = f"{adapter.name!r}: this model has {adapter.num_layers} of its {num_written} layers"
            warnings.append(RequestWarning("lora_partial", "loras", partly))
    return warnings


def _said(error: Exception) -> str:
    """Return the text of an error without the path that the system adds, because users see it."""
    return str(getattr(error, "strerror", None) or " ".join(str(error).split()))
