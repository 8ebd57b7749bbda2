"""The logs of a data folder, read line by line and followed over restarts and rotations.

Knows where the supervisor writes them and how it renames them, and nothing of what they say.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from local.errors import LocalError

_ROTATED = ".1"
_MAX_LINE_BYTES = 65_536


class LogFile:
    """One log from its last `num_lines` on; nothing yet where no file is."""

    def __init__(self, path: Path, num_lines: int) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""
        self._first = deque[str](maxlen=num_lines)
        if self._reopen():
            self._first.extend(self._read())
        self._is_first = True

    def new_lines(self) -> list[str]:
        """The lines written since the last call; at the first call the last ones of before."""
        lines: list[str] = []
        if self._is_first:
            self._is_first = False
            lines += self._first
        lines += self._read()
        if self._has_moved() and self._reopen():
            lines += self._read()
        return lines

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> list[str]:
        if self._file is None:
            return []
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)  # it was emptied and is written anew
        *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            whole, self._rest = [*whole, self._rest], b""
        return [line.decode("utf-8", "replace") for line in whole]

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
        self._file, self._rest = file, b""
        return True


def log_names(folder: Path) -> list[str]:
    """The services that have written a log in this folder."""
    return sorted(path.stem for path in folder.glob("*.log") if not path.stem.endswith(_ROTATED))


def read_logs(
    folder: Path, names: Sequence[str], num_lines: int, go_on: Callable[[], bool] = lambda: False
) -> Iterator[tuple[str, str]]:
    """Each line with its service: the last `num_lines` of each, then what comes while `go_on()` says so.

    Without names it is every service, also one whose log appears later. `go_on` is called between two
    looks and decides how long they are apart. Raises `LocalError` for a service without a log.
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
