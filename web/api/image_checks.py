"""Checks that uploads are images which jobs can use as input, one at a time.

An image is decoded on the thread of its request. Memory and time are bounded by the limits, by decoding one
file at a time in this process, and by the bytes of files that may be in memory at once. This module owns the
lock and that budget; `tasks.images.facts` decides what an image is.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.images.facts import ImageFacts, ImageLimits, read
from web.refusals import Busy

WAIT_SECONDS = 5.0
MAX_HELD_BYTES = 134_217_728
"""For files that wait for a check, are being checked, or are being stored; each is in memory twice."""


class ImageChecks:
    """The checks of one process; safe to share between threads."""

    def __init__(
        self,
        limits: ImageLimits,
        *,
        wait_seconds: float = WAIT_SECONDS,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self.limits = limits
        self._wait_seconds = wait_seconds
        self._max_held_bytes = max_held_bytes
        self._turn = threading.Lock()
        self._counting = threading.Lock()
        self._held_bytes = 0

    @contextmanager
    def room(self, num_bytes: int) -> Iterator[None]:
        """Reserve memory for a file while the body runs; raises `Busy` if too much is reserved already."""
        with self._counting:
            if self._held_bytes and self._held_bytes + num_bytes > self._max_held_bytes:
                raise Busy("too many files are being uploaded; try again")
            self._held_bytes += num_bytes
        try:
            yield
        finally:
            with self._counting:
                self._held_bytes -= num_bytes

    def facts(self, data: bytes) -> ImageFacts:
        """The facts of the image; raises `ImageUnreadable`, and `Busy` if other checks take too long."""
        if not self._turn.acquire(timeout=self._wait_seconds):
            raise Busy("too many images are being checked; try again")
        try:
            return read(data, self.limits)
        finally:
            self._turn.release()
