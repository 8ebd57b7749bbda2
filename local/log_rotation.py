"""Keeps the logs of a data folder bounded while their writers go on writing.

Owns the sizes and the names of kept logs. A writer holds its log open for appending and is never told: what
it has written is copied aside and the log emptied, so that it goes on at its beginning.
"""

import os
from contextlib import suppress
from io import RawIOBase
from pathlib import Path

MAX_BYTES = 8 * 2**20
"""Of a log, before it is copied aside; a fast writer may go over it for a second."""
NUM_KEPT = 3
_CHUNK_BYTES = 2**20
_NUM_LOOKS = 8
"""For what came while the rest was copied; who writes without a pause is never quite copied."""


def rotate_logs(folder: Path, *, max_bytes: int = MAX_BYTES, num_kept: int = NUM_KEPT) -> None:
    """Copy aside and empty every log in `folder` that has outgrown `max_bytes`.

    What is written between the end of the copy and the emptying, some microseconds, is lost: a few lines
    of a program that writes without a pause. So is the whole log where it cannot be copied, as on a full
    disk: it is bounded all the same.
    """
    for log in current_logs(folder):
        try:
            if log.stat().st_size > max_bytes:
                _rotate(log, num_kept)
        except OSError:
            continue  # it is gone, or the disk is broken: what supervises must go on


def current_logs(folder: Path) -> list[Path]:
    """The logs that are written to now, by name."""
    return sorted(log for log in folder.glob("*.log") if not log.stem.rpartition(".")[2].isdecimal())


def kept_log(log: Path, number: int = 1) -> Path:
    """Where what was copied aside lies; 1 is the newest."""
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
                copy.replace(kept_log(log))  # before the log is emptied: who follows it looks there first
                for _ in range(_NUM_LOOKS):
                    if not _copy_chunk(source, target):
                        break
        except OSError:
            with suppress(OSError):
                copy.unlink()
        source.truncate(0)


def _copy_chunk(source: RawIOBase, target: RawIOBase) -> int:
    """Copy what there is, a chunk at most; its bytes."""
    chunk = source.read(_CHUNK_BYTES) or b""
    view = memoryview(chunk)
    while view:
        view = view[target.write(view) or 0 :]
    return len(chunk)


def _for_owner_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
