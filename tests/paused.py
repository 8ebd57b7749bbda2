"""Processes that stay and answer nothing, as with a stalled disk: `SIGSTOP` to one and its children."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """Stop the process and all of its children while the body runs; their sockets stay open."""
    parent = psutil.Process(pid)
    stopped = [parent, *parent.children(recursive=True)]
    try:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        yield
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
