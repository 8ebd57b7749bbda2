"""Records the jobs that native code works on in a file that outlives the process, since a job may crash it.

Owns one file per worker process, its format, and the lock that distinguishes live processes from dead ones.
It does not know why a job is on the device, nor what happens to the jobs of a dead process.
"""

import fcntl
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".device"
_NUM_BYTES = 16384
_HEADER = struct.Struct("<II")  # the length of the body, and its CRC-32 (zlib)
_MACHINE_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Linux: a new value at every boot (random(4)). After a power failure a file may hold outdated content."""


@dataclass(frozen=True)
class DeadProcess:
    """A process that left a record; `on_device` is `None` if the record is not valid."""

    boot_id: str
    on_device: frozenset[str] | None


class DeviceRecord:
    """The record of this process. The engine's thread calls `note`, any thread may call `encoding`.

    The file is mapped into memory, so that a note costs no system call and stays in the kernel's page cache
    after a SIGKILL. The lock on the file ends with the process.
    """

    def __init__(self, folder: Path, boot_id: str) -> None:
        """Create an empty record in `folder`, and the folder if it is missing; raises `OSError`."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = record_path(folder, boot_id)
        self.job_ids: tuple[str, ...] = ()
        self._encoding: list[str] = []
        self._lock = threading.Lock()
        self._machine = _machine_boot_id()
        # It is complete and locked before it gets its name, or it could pass for a dead process' record.
        unfinished = self.path.with_suffix(".new")
        self._file = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        os.ftruncate(self._file, _NUM_BYTES)
        self._memory = mmap.mmap(self._file, _NUM_BYTES)
        self.note(())
        unfinished.rename(self.path)

    def note(self, job_ids: Sequence[str]) -> None:
        """Record the ids of the jobs that the device works on from now on, if any."""
        with self._lock:
            self.job_ids = tuple(job_ids)
            self._write()

    @contextmanager
    def encoding(self, job_id: str) -> Iterator[None]:
        """Record while the block runs that native code encodes an image file of this job."""
        with self._lock:
            self._encoding.append(job_id)
            self._write()
        try:
            yield
        finally:
            with self._lock:
                self._encoding.remove(job_id)
                self._write()

    def _write(self) -> None:
        body = "\n".join((self._machine, *dict.fromkeys((*self.job_ids, *self._encoding)))).encode()
        header = _HEADER.pack(len(body), zlib.crc32(body))
        body = body[
            : _NUM_BYTES - _HEADER.size
        ]  # a truncated body does not match its checksum, so the record is invalid
        # The header is written last, so a crash in between leaves a record that does not match its checksum.
        self._memory[_HEADER.size : _HEADER.size + len(body)] = body
        self._memory[: _HEADER.size] = header

    def withdraw_if_empty(self) -> None:
        """Delete the record if nothing is on the device: any job may have caused the fault."""
        if not self.job_ids:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file without deleting it, as when the process ends."""
        self._memory.close()
        os.close(self._file)


def record_path(folder: Path, boot_id: str) -> Path:
    """The path of the record of that worker process."""
    return folder / f"{boot_id}{SUFFIX}"


def read_record(path: Path) -> frozenset[str] | None:
    """The jobs that were on the device or being encoded last; `None` without a valid record."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < _HEADER.size:
        return None
    num_bytes, checksum = _HEADER.unpack_from(data)
    body = data[_HEADER.size : _HEADER.size + num_bytes]
    if zlib.crc32(body) != checksum:
        return None
    machine, *job_ids = body.decode(errors="replace").split("\n")
    return frozenset(job_ids) if machine == _machine_boot_id() else None


@contextmanager
def dead_processes(folder: Path) -> Iterator[list[DeadProcess]]:
    """The processes whose records no live process locks; deletes the records if the block succeeds.

    While the block runs, no other process gets the same ones.
    """
    found: dict[Path, int] = {}
    try:
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            if (file := _locked(path)) is not None:
                found[path] = file
        yield [DeadProcess(path.stem, read_record(path)) for path in found]
        for path in found:
            path.unlink(missing_ok=True)
    finally:
        for file in found.values():
            os.close(file)


def _locked(path: Path) -> int | None:
    """The open file descriptor, unless a live process holds its lock."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None  # another process has just deleted it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def _machine_boot_id() -> str:
    try:
        return _MACHINE_BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
