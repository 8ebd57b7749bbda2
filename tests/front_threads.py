"""The front's threads with a short queue, for tests that fill it."""

import time
from collections.abc import Callable

from web.front.limits import Limits
from web.front.threads import Threads


def threads_of(num_threads: int, max_queued: int, clock: Callable[[], float] = time.monotonic) -> Threads:
    """So many threads, and a queue that is never longer."""
    limits = Limits(num_threads=num_threads, max_queued=max_queued, max_quick_queued=max_queued)
    return Threads(limits, clock=clock)
