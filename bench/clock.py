"""A clock that counts work and skips waiting, so that an open loop at low load costs only its work.

It counts the CPU seconds of this process. On one thread these are the seconds that an idle core would have
taken; what other programs take from a shared machine is left out, and so must every arm be on one thread.
"""

import time


class WorkClock:
    """CPU seconds of this process, plus what was skipped while there was nothing to do."""

    def __init__(self) -> None:
        self._skipped = 0.0

    def __call__(self) -> float:
        """Seconds; only differences mean something."""
        return time.process_time() + self._skipped

    def skip_to(self, instant: float) -> None:
        """Let the time until `instant` pass, in which nothing happens."""
        self._skipped += max(0.0, instant - self())

    def hide(self, seconds: float) -> None:
        """Take back `seconds` of work that were not this arm's."""
        self._skipped -= seconds
