"""The child's side of an API in several processes: what its parent gave it, and the channel to that parent.

The parent (`web.front.processes`) starts each child with an index, a channel and the sockets to accept on.
The channel is closed when either of them ends. It knows neither requests nor settings.
"""

import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

import structlog

log = structlog.get_logger()

VARIABLE = "CALOTYPE_WEB_PROCESS"
"""Holds what the parent gives: index, descriptor of the channel, descriptors of the sockets."""
READY, ALIVE, METRICS = b"ready", b"alive", b"metrics"
"""The lines on the channel: a child says the first two; the third, with a number, asks it for its metrics,
which it answers with that number and JSON in one line."""


@dataclass(frozen=True)
class Given:
    """What a child gets from its parent."""

    index: int
    channel: int
    sockets: tuple[int, ...]

    def variable(self) -> dict[str, str]:
        """The environment variable that says it."""
        return {VARIABLE: ":".join(map(str, (self.index, self.channel, *self.sockets)))}

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self | None:
        """What the environment says; `None` in a process that serves alone or is the parent."""
        if not (said := environment.get(VARIABLE)):
            return None
        index, channel, *sockets = map(int, said.split(":"))
        return cls(index, channel, tuple(sockets))


def take(given: Given) -> "tuple[Parent, list[socket.socket]]":
    """The parent and the sockets of this process, which no program that it starts inherits."""
    for descriptor in (given.channel, *given.sockets):
        os.set_inheritable(descriptor, False)
    sockets = [socket.socket(fileno=descriptor) for descriptor in given.sockets]
    return Parent(given.index, socket.socket(fileno=given.channel)), sockets


@dataclass
class Parent:
    """The process that started this one."""

    index: int
    channel: socket.socket
    _sending: threading.Lock = field(default_factory=threading.Lock)

    def say(self, line: bytes) -> None:
        """Send a line; it is dropped if the parent is gone or reads nothing. It never waits."""
        if not self._sending.acquire(blocking=False):
            return
        try:
            self.channel.send(line + b"\n", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return
        finally:
            self._sending.release()

    def follow(self, metrics: Callable[[], bytes], on_end: Callable[[], None]) -> None:
        """Answer the parent's questions on a thread; call `on_end` there once the parent has ended."""

        def run() -> None:
            try:
                with self.channel.makefile("rb") as lines:
                    for line in lines:
                        question, _, number = line.strip().partition(b" ")
                        if question == METRICS:
                            self._answer(number, metrics)
            except OSError:
                pass  # a parent that is killed may leave a reset connection instead of an end
            finally:
                on_end()

        threading.Thread(target=run, name="parent", daemon=True).start()

    def _answer(self, number: bytes, metrics: Callable[[], bytes]) -> None:
        try:
            line = metrics()
        except Exception:
            log.exception("metrics_not_written")
            return
        with self._sending, suppress(OSError):  # the reader notices the end
            self.channel.sendall(number + b" " + line + b"\n")
