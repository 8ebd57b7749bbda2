"""What native code works on, in a file that outlives the process: which jobs can have ended it.

Owns one file for each life of a worker, its format, and the lock that tells the living from the dead. It
does not know why a job is on the device or becomes a file, nor what becomes of the jobs of a dead process.
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
"""Linux: new at every boot of the machine (random(4)). A file of before a power cut may be an old one."""


@dataclass(frozen=True)
class DeadProcess:
    """A process that left a record; `on_device` is nothing where the record cannot be believed."""

    boot_id: str
    on_device: frozenset[str] | None


class DeviceRecord:
    """The record of this process: `note` is for the engine's thread, `encoding` for any.

    It is mapped into memory, so that a note costs no system call, and what was noted is still in the kernel's
    page cache after a SIGKILL. The lock on the file ends with the process.
    """

    def __init__(self, folder: Path, boot_id: str) -> None:
        """Begin an empty record in `folder`, which is made where it is missing; raises `OSError`."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = record_path(folder, boot_id)
        self.job_ids: tuple[str, ...] = ()
        self._encoding: list[str] = []
        self._lock = threading.Lock()
        self._machine = _machine_boot_id()
        # Complete and locked before it has its name: nobody may take it for the record of a dead process.
        unfinished = self.path.with_suffix(".new")
        self._file = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        os.ftruncate(self._file, _NUM_BYTES)
        self._memory = mmap.mmap(self._file, _NUM_BYTES)
        self.note(())
        unfinished.rename(self.path)

    def note(self, job_ids: Sequence[str]) -> None:
        """From now on the device works on these jobs, or on none."""
        with self._lock:
            self.job_ids = tuple(job_ids)
            self._write()

    @contextmanager
    def encoding(self, job_id: str) -> Iterator[None]:
        """While the block runs, native code makes an image file of this job, beside what the device does."""
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
        body = body[: _NUM_BYTES - _HEADER.size]  # what was cut off does not match its sum: nobody knows then
        # The header last: a process that dies in between leaves a record that does not match its sum either.
        self._memory[_HEADER.size : _HEADER.size + len(body)] = body
        self._memory[: _HEADER.size] = header

    def withdraw_if_empty(self) -> None:
        """Take the record away if nothing is on the device: any job may have caused the fault."""
        if not self.job_ids:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file, which stays, as it does when the process ends."""
        self._memory.close()
        os.close(self._file)


def record_path(folder: Path, boot_id: str) -> Path:
    """Where the record of that life of a worker lies."""
    return folder / f"{boot_id}{SUFFIX}"


def read_record(path: Path) -> frozenset[str] | None:
    """The jobs that were on the device or became a file last; nothing where no record can be believed."""
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
    """Those whose records nobody holds any more; the records are gone once the block has ended well.

    While the block runs, nobody else is told of the same ones.
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
    """The open file, if no living process holds its lock."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None  # another has just taken it away
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
