"""Keeps the logs of a data folder bounded while their writers go on writing.

It owns the sizes and the names of kept logs. A writer keeps its log open for appending and notices nothing:
the log is copied and then emptied.
"""

import os
from contextlib import suppress
from io import RawIOBase
from pathlib import Path

MAX_BYTES = 8 * 2**20
"""The size at which a log is rotated; a fast writer may exceed it for a second."""
NUM_KEPT = 3
_CHUNK_BYTES = 2**20
_NUM_LOOKS = 8
"""How many times the copy continues with lines written meanwhile: a limit, as a fast writer never pauses."""


def rotate_logs(folder: Path, *, max_bytes: int = MAX_BYTES, num_kept: int = NUM_KEPT) -> None:
    """Rotate every log in `folder` that is larger than `max_bytes`.

    Lines written in the microseconds between copying and emptying are lost. If the log cannot be copied, for
    example because the disk is full, it is emptied without a copy, so that its size stays bounded.
    """
    for log in current_logs(folder):
        try:
            if log.stat().st_size > max_bytes:
                _rotate(log, num_kept)
        except OSError:
            continue  # the file is gone or the disk is broken; the supervisor must go on


def current_logs(folder: Path) -> list[Path]:
    """Return the current logs, by name."""
    return sorted(log for log in folder.glob("*.log") if not log.stem.rpartition(".")[2].isdecimal())


def kept_log(log: Path, number: int = 1) -> Path:
    """Return the path of a rotated log; number 1 is the newest."""
    return log.with_suffix(f".{number}.log")


def _rotate(log: Path, num_kept: int) -> None:
    for number in range(num_kept, 1, -1):
        if kept_log(log, number - 1).exists():
            kept_log(log, number - 1).replace(kept_log(log, number))
    copy = log.with_name(f".{log.name}.tmp")
    with log.open("r+b", buffering=0) as source:
        try:
            with open(copy, "wb", buffering=0, opener=_for_owner_alone) as target:
                while _copy_chunk(source, target) == _CHUNK_BYTES:
                    pass
                copy.replace(kept_log(log))  # before the log is emptied, because a follower looks there first
                for _ in range(_NUM_LOOKS):
                    if not _copy_chunk(source, target):
                        break
        except OSError:
            with suppress(OSError):
                copy.unlink()
        source.truncate(0)


def _copy_chunk(source: RawIOBase, target: RawIOBase) -> int:
    """Copy at most one chunk; return its size in bytes."""
    chunk = source.read(_CHUNK_BYTES) or b""
    view = memoryview(chunk)
    while view:
        view = view[target.write(view) or 0 :]
    return len(chunk)


def _for_owner_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
