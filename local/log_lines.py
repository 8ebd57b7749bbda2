"""Reads the logs of a data folder line by line, and follows them across restarts and rotations.

It knows where the supervisor writes logs and keeps rotated ones. It does not interpret their lines.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from local.errors import LocalError
from local.log_rotation import current_logs, kept_log

_MAX_LINE_BYTES = 65_536


class LogFile:
    """One log, read from its last `num_lines` on; empty while the file does not exist."""

    def __init__(self, path: Path, num_lines: int) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""
        self._first = deque[str](maxlen=num_lines)
        self._kept: os.stat_result | None = None
        if num_lines:
            self._first.extend(self._read_kept(0))  # the last lines may be in the rotated file
        if self._reopen():
            self._first.extend(self._read())
        self._is_first = True

    def new_lines(self) -> list[str]:
        """Return the lines written since the last call; the first call returns the last `num_lines`."""
        lines: list[str] = []
        if self._is_first:
            self._is_first = False
            lines += self._first
        if self._file is not None and self._was_emptied(self._file):
            lines += self._read_kept(self._file.tell())
            self._file.seek(0)
        lines += self._read()
        if self._has_moved() and self._reopen():
            lines += self._read()
        return lines

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> list[str]:
        if self._file is None:
            return []
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)  # it was emptied by a rotation
        return self._split(self._file.read())

    def _read_kept(self, position: int) -> list[str]:
        """Return the lines of the newest rotated file from that position on."""
        try:
            with kept_log(self._path).open("rb") as file:
                self._kept = os.fstat(file.fileno())
                file.seek(position)
                return self._split(file.read())
        except OSError:
            return []

    def _split(self, written: bytes) -> list[str]:
        *whole, self._rest = (self._rest + written).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            whole, self._rest = [*whole, self._rest], b""
        return [line.decode("utf-8", "replace") for line in whole]

    def _was_emptied(self, file: BinaryIO) -> bool:
        """Whether a rotation has copied and emptied the log since the last call."""
        try:
            kept = kept_log(self._path).stat()
        except OSError:
            return False
        is_new = self._kept is None or not os.path.samestat(kept, self._kept)
        return is_new and os.fstat(file.fileno()).st_size < kept.st_size

    def _has_moved(self) -> bool:
        try:
            return self._file is None or not os.path.samestat(
                self._path.stat(), os.fstat(self._file.fileno())
            )
        except OSError:
            return False

    def _reopen(self) -> bool:
        try:
            file = self._path.open("rb")
        except OSError:
            return False
        self.close()
        self._file = file
        return True


def log_names(folder: Path) -> list[str]:
    """Return the names of the services that have a log in this folder."""
    return [log.stem for log in current_logs(folder)]


def read_logs(
    folder: Path, names: Sequence[str], num_lines: int, go_on: Callable[[], bool] = lambda: False
) -> Iterator[tuple[str, str]]:
    """Yield each line with its service: the last `num_lines` of each, then new ones while `go_on()` is true.

    Without names it follows every service, also those whose log appears later. `go_on` is called between two
    polls and so sets their interval. Raises `LocalError` for a service without a log.
    """
    for name in names:
        if name not in (known := log_names(folder)):
            raise LocalError(f"{name!r} has no log in {folder}; there is: {', '.join(known) or 'none'}")
    logs: dict[str, LogFile] = {}
    try:
        while True:
            for name in names or log_names(folder):
                if name not in logs:
                    logs[name] = LogFile(folder / f"{name}.log", num_lines)
            for name, log in logs.items():
                for line in log.new_lines():
                    yield name, line
            if not go_on():
                return
    finally:
        for log in logs.values():
            log.close()
