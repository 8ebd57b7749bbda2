"""The parent of an API in several processes behind one port: it starts, restarts and ends them.

It binds the sockets once, and its children accept on them; it serves no request and imports no application.
A child that dies loses its own connections: those that nobody has accepted yet wait in the sockets, for the
other children. It does not know what the children do.
"""

import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import structlog

from web.front.parent import ALIVE, METRICS, READY, Given

log = structlog.get_logger()

BACKLOG = 2048
"""The number of connections that the kernel queues until they are accepted."""
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS, HEALTHY_SECONDS = 0.2, 10.0, 30.0
START_SECONDS = 120.0
SILENT_SECONDS = 60.0
"""A child says every second that it lives, unless all of its threads have been stuck for a minute."""
KILL_SECONDS = 5.0
"""The time that a child has to exit after the end of its drain."""
ANSWER_SECONDS = 3.0
_LOOK_SECONDS = 0.1


def listen_on(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of the host, as asyncio has it. Raises `OSError`."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    for family, _, _, _, address in dict.fromkeys(found):
        listening = socket.socket(family, socket.SOCK_STREAM)
        sockets.append(listening)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    return sockets


@dataclass
class _Child:
    """One place for a process, and the process that is in it now."""

    index: int
    process: "subprocess.Popen[bytes] | None" = None
    channel: socket.socket | None = None
    is_ready: bool = False
    started_at: float = 0
    heard_at: float = 0
    restart_at: float = 0
    pause_seconds: float = FIRST_PAUSE_SECONDS
    received: bytes = b""
    answers: "SimpleQueue[bytes]" = field(default_factory=SimpleQueue)

    def answer_to(self, number: bytes, until: float) -> bytes | None:
        """Its answer to the question of this number, or None if it comes too late.

        Answers to earlier questions, which came too late, are dropped.
        """
        try:
            while True:
                line = self.answers.get(timeout=max(0.0, until - time.monotonic()))
                answered, _, answer = line.partition(b" ")
                if answered == number:
                    return answer
        except Empty:
            return None


class Processes:
    """Runs `num_processes` children with this command, which accept on these sockets.

    The children stay in the process group of this one, so whoever kills the group ends all of them. If this
    process is killed alone, they see the end of their channels and drain.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        sockets: Sequence[socket.socket],
        *,
        num_processes: int,
        drain_seconds: float,
    ) -> None:
        self._command, self._environment, self._sockets = command, environment, sockets
        self._drain_seconds = drain_seconds
        self._children = [_Child(index) for index in range(num_processes)]
        self._selector = selectors.DefaultSelector()
        self._num_signals = 0
        self._num_questions = 0
        self._has_started = False
        self._asking = threading.Lock()

    def run(self) -> int:
        """Run until SIGTERM, SIGINT or SIGHUP, and then drain; returns the exit code. Needs the main thread.

        A second signal kills the children. If one ends before any has been ready, this ends with its code.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._receive)
        failed_with = None
        while not self._num_signals and failed_with is None:
            now = time.monotonic()
            for child in self._children:
                if child.process is None and now >= child.restart_at:
                    self._start(child)
            self._read_channels(_LOOK_SECONDS)
            for child in self._children:
                code = self._supervise(child)
                if code is not None and not self._has_started:
                    failed_with = code
        for listening in self._sockets:
            listening.close()  # so that clients are refused once no child accepts either
        all_drained = self._end()
        if failed_with is not None:
            return abs(failed_with) or 1
        return 0 if all_drained else 1

    def metrics(self) -> list[tuple[int, bytes]]:
        """The index and the answer of each child that says in time what its metrics are. For any thread."""
        with self._asking:
            asked = [child for child in self._children if child.channel is not None and child.is_ready]
            self._num_questions += 1
            number = b"%d" % self._num_questions
            for child in asked:
                _send(child.channel, METRICS + b" " + number)
            end, found = time.monotonic() + ANSWER_SECONDS, []
            for child in asked:
                answer = child.answer_to(number, end)
                if answer is None:
                    log.warning("web_process_metrics_late", process=child.index)
                else:
                    found.append((child.index, answer))
            return found

    def _receive(self, *_: Any) -> None:
        self._num_signals += 1

    def _start(self, child: _Child) -> None:
        ours, theirs = socket.socketpair()
        descriptors = [listening.fileno() for listening in self._sockets]
        given = Given(child.index, theirs.fileno(), tuple(descriptors))
        with theirs:
            child.process = subprocess.Popen(
                self._command,
                env={**self._environment, **given.variable()},
                pass_fds=(theirs.fileno(), *descriptors),
                stdin=subprocess.DEVNULL,
            )
        child.started_at = child.heard_at = time.monotonic()
        child.is_ready, child.received, child.channel = False, b"", ours
        ours.setblocking(False)
        self._selector.register(ours, selectors.EVENT_READ, child)

    def _read_channels(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            child: _Child = key.data
            assert child.channel is not None
            try:
                data = child.channel.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                self._close(child)
                continue
            *lines, child.received = (child.received + data).split(b"\n")
            for line in lines:
                self._hear(child, line)

    def _hear(self, child: _Child, line: bytes) -> None:
        # An answer about metrics proves nothing: it comes from a thread of its own, beside a loop that hangs.
        if line in (READY, ALIVE):
            child.heard_at = time.monotonic()
        if line == READY:
            child.is_ready = self._has_started = True
            assert child.process is not None
            log.info("web_process_ready", process=child.index, pid=child.process.pid)
        elif line != ALIVE:
            child.answers.put(line)

    def _supervise(self, child: _Child) -> int | None:
        """End a child that hangs, and plan the restart of one that has ended; returns its exit code then."""
        if child.process is None:
            return None
        now, code = time.monotonic(), child.process.poll()
        if code is None:
            limit = SILENT_SECONDS if child.is_ready else START_SECONDS
            if now - child.heard_at > limit:
                log.error("web_process_silent", process=child.index, pid=child.process.pid)
                child.process.kill()
            elif now - child.started_at > HEALTHY_SECONDS:
                child.pause_seconds = FIRST_PAUSE_SECONDS
            return None
        log.error("web_process_ended", process=child.index, pid=child.process.pid, code=code)
        self._close(child)
        child.process, child.restart_at = None, now + child.pause_seconds
        child.pause_seconds = min(2 * child.pause_seconds, MAX_PAUSE_SECONDS)
        return code

    def _close(self, child: _Child) -> None:
        channel, child.channel, child.is_ready = child.channel, None, False
        if channel is not None:
            self._selector.unregister(channel)
            channel.close()

    def _end(self) -> bool:
        """Let all children drain; whether they did."""
        running = [child.process for child in self._children if child.process is not None]
        # One that is still importing is ended by the signal itself.
        serving = [child.process for child in self._children if child.process is not None and child.is_ready]
        for process in running:
            process.send_signal(signal.SIGTERM)
        num_signals, end = self._num_signals, time.monotonic() + self._drain_seconds + KILL_SECONDS
        while left := [process for process in running if process.poll() is None]:
            if time.monotonic() > end or self._num_signals > max(1, num_signals):
                for process in left:
                    process.kill()
                    process.wait()
                break
            self._read_channels(_LOOK_SECONDS)
        return all(process.returncode == 0 for process in serving)


def _send(channel: socket.socket | None, line: bytes) -> None:
    try:
        if channel is not None:
            channel.send(line + b"\n", socket.MSG_NOSIGNAL)
    except OSError:
        return  # it has just ended
