"""Recognises that the disk of temporary files is full, and notes how much of it was free at that moment.

Whoever writes a temporary file uses it, so that each answers alike. It knows no request and logs nothing.
"""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

_FULL = (errno.ENOSPC, errno.EDQUOT)


class TemporarySpaceFull(OSError):
    """There is no room for a temporary file in `directory`, on whose disk `num_free_bytes` were left.

    That number is None if it could not be read. It may be large if the disk has a quota.
    """

    code = "disk_full"
    detail = "the server's space for temporary files is full, and nothing was created; try again later"

    def __init__(self, error: OSError, directory: str, num_free_bytes: int | None) -> None:
        super().__init__(error.errno, error.strerror)
        self.directory = directory
        self.num_free_bytes = num_free_bytes

    @classmethod
    def of(cls, error: BaseException) -> Self | None:
        """This error with the free space, or None if it is another error.

        Ask before the files are closed, which frees their space.
        """
        if isinstance(error, cls):
            return error
        if not isinstance(error, OSError) or error.errno not in _FULL:
            return None
        directory = tempfile.gettempdir()
        try:
            return cls(error, directory, shutil.disk_usage(directory).free)
        except OSError:
            return cls(error, directory, None)


@contextmanager
def writing() -> Iterator[None]:
    """Raise `TemporarySpaceFull` if the body, which writes a temporary file, finds no room."""
    try:
        yield
    except OSError as error:
        if (full := TemporarySpaceFull.of(error)) is None:
            raise
        raise full from error
