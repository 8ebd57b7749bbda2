"""Whether what a client sends is an image that can be drawn from, looked at one at a time.

Looking decodes it on the thread of its request: what that takes of memory and time is bounded by the limits,
by looking at one file after the other in this process, and by how many bytes of files are on their way in at
once. Owns the turn and the room; what is an image is `tasks.images.facts`'.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.images.facts import ImageFacts, ImageLimits, read
from web.refusals import Busy

WAIT_SECONDS = 5.0
MAX_HELD_BYTES = 134_217_728
"""Of files that are looked at, wait for it, or are being put into the store; a request holds them twice."""


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
        """Hold a file of so many bytes while the body runs; raises `Busy` where too many are held."""
        with self._counting:
            if self._held_bytes and self._held_bytes + num_bytes > self._max_held_bytes:
                raise Busy("too many files are coming in: try again")
            self._held_bytes += num_bytes
        try:
            yield
        finally:
            with self._counting:
                self._held_bytes -= num_bytes

    def facts(self, data: bytes) -> ImageFacts:
        """What the image is; raises `ImageUnreadable`, and `Busy` where many others are looked at."""
        if not self._turn.acquire(timeout=self._wait_seconds):
            raise Busy("too many images are being looked at: try again")
        try:
            return read(data, self.limits)
        finally:
            self._turn.release()
