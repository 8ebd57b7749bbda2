"""Finds the `calotype up` that runs on a data folder, signals it, and waits for its end.

It makes sure that a signal reaches that process and no other: the kernel may have given the number in an old
lock file to a different process. It knows no service.
"""

import fcntl
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from local.errors import LocalError
from local.process import is_alive
from local.state import LOCK_FILE

_POLL_SECONDS = 0.1
_MAX_PID = 2**31


@dataclass(frozen=True)
class Holder:
    """The process that holds the lock of a data folder."""

    pid: int
    _handle: int | None
    """A descriptor of the process (pidfd_open(2)); a signal sent through it cannot reach another process."""

    def tell(self, number: int) -> None:
        """Send it a signal; does nothing if it has ended."""
        with suppress(ProcessLookupError):
            if self._handle is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(self._handle, number)

    def has_ended(self, wait_seconds: float = 0) -> bool:
        """Wait up to that long for its end; return whether it has ended."""
        if self._handle is not None:
            return bool(select.select([self._handle], [], [], wait_seconds)[0])
        deadline = time.monotonic() + wait_seconds
        while is_alive(self.pid):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True


@contextmanager
def find_holder(folder: Path) -> Iterator[Holder | None]:
    """Yield the `calotype up` of that folder, or None. Raises `LocalError` if another user runs it."""
    try:
        lock = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise LocalError(f"{folder / LOCK_FILE} cannot be read: {error.strerror}") from error
    handle: int | None = None
    try:
        pid = _written_pid(lock)
        if pid is not None:
            # Opened before the check: from here on the number cannot refer to another process.
            handle = _open_process(pid)
        holder = None if pid is None else Holder(pid, handle)
        # The files of a zombie cannot be read, like those of another user's process.
        yield holder if holder and not holder.has_ended() and _holds(holder.pid, lock) else None
    finally:
        os.close(lock)
        if handle is not None:
            os.close(handle)


def _written_pid(lock: int) -> int | None:
    text = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdecimal() and 1 < int(text) < _MAX_PID else None


def _open_process(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # it has ended, or this kernel is older than 5.3
        return None


def _holds(pid: int, lock: int) -> bool:
    """Whether that process is alive and has the lock file open, as only this folder's `calotype up` does."""
    if not is_alive(pid):
        return False
    folder = Path(f"/proc/{pid}/fd")
    if not Path("/proc/self/fd").is_dir():
        return _is_locked(lock)
    wanted = os.fstat(lock)
    try:
        entries = list(folder.iterdir())
    except FileNotFoundError:
        return False
    except PermissionError as error:
        raise LocalError(f"process {pid} belongs to another user: run this as that user") from error
    for entry in entries:
        with suppress(OSError):
            if os.path.samestat(entry.stat(), wanted):
                return True
    return False


def _is_locked(lock: int) -> bool:
    # A shared lock, so that two concurrent checks do not take each other for an `up`.
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(lock, fcntl.LOCK_UN)
    return False
