"""HTTP/1.1 over uvicorn and h11, with a deadline for every phase in which a client keeps us waiting.

Owns connections: which phase each is in, who is cut when there are too many, and how one ends so that its
client can still read the answer. While a request is being answered the deadlines are `web.front.exchange`'s.
"""

import asyncio
import math
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from web.front.exchange import CONNECTION, Receive, Scope, Send
from web.front.limits import Limits
from web.front.refusals import BadFraming, HeaderTooLarge, RefusalLog, problem

SEND_BUFFER_BYTES = 65_536
"""In the kernel, which would else hold megabytes for whoever reads nothing; Linux doubles it."""
RESET = struct.pack("ii", 1, 0)
"""`SO_LINGER` of no time: what is unsent is dropped, where the kernel would go on sending it for hours."""

GRACE_SECONDS = 1.0
"""What a client has to go on before it is cut for another, as long as there is any room."""


class Phase(Enum):
    """What a connection is doing."""

    HEADER = "header"
    BUSY = "busy"
    LINGER = "linger"
    """The answer was sent before the body was read: what comes of it is thrown away."""
    IDLE = "idle"
    CLOSING = "closing"


class Connections:
    """All connections of one process, at most `max_connections`.

    From four fifths of them on, a new one has another cut: the one whose client has sent or taken nothing for
    longest, unless that is less than `GRACE_SECONDS`. So a client has the time to send its request even while
    all others are being worked for. Beyond the limit it is cut all the same.
    """

    def __init__(self, max_connections: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_connections = max_connections
        self._num_roomy = max_connections - max_connections // 5
        self._clock = clock
        self._open: set[Connection] = set()
        self._waiting: dict[Connection, float] = {}
        """Since when, the longest first."""
        self.num_cut: Counter[str] = Counter()
        """By the phase in which they were."""
        self.refusals = RefusalLog()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: "Connection") -> None:
        """One more, in whose place another may be cut, or itself where nobody else waits for a client."""
        self._open.add(connection)
        slowest, since = next(iter(self._waiting.items()), (connection, math.inf))
        is_late = self._clock() - since >= GRACE_SECONDS
        if len(self) > self._max_connections or (len(self) > self._num_roomy and is_late):
            # Now: until its socket is closed the next new one would find the same.
            self.remove(slowest)
            slowest.cut()

    def note(self, connection: "Connection", *, is_waiting: bool) -> None:
        """A connection that has just begun to wait for its client, or that has made progress, is the last."""
        self._waiting.pop(connection, None)
        if is_waiting and connection in self._open:
            self._waiting[connection] = self._clock()

    def remove(self, connection: "Connection") -> None:
        """It has ended, or is about to."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)


class Connection(H11Protocol):
    """One client's connection."""

    def __init__(self, *arguments: Any, limits: Limits, connections: Connections, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits = limits
        self._all = connections
        self._application = self.app
        self.app = self._call
        self._phase = Phase.BUSY
        self._deadline: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._gentle: GentleTransport | None = None

    async def drained(self) -> None:
        """Return when everything that was sent has left this process, or the client has."""
        if self._gentle is not None:
            self._gentle.flush()
        await self.flow.drain()

    def abort(self) -> None:
        """End the connection now, with what the kernel still holds for it."""
        if self._transport is not None:
            if not self._transport.is_closing():
                self._transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, RESET
                )
            self._transport.abort()

    def note_waiting(self, is_waiting: bool) -> None:
        """Whether the next step of a request is its client's: to send more, or to take what was sent."""
        if self._phase is Phase.BUSY:
            self._all.note(self, is_waiting=is_waiting)

    def cut(self) -> None:
        """End the connection since its client took too long."""
        self._all.num_cut[self._phase.value] += 1
        if self._transport is not None and not self._transport.get_write_buffer_size():
            self._transport.close()
        else:
            self.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """asyncio's call."""
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        transport.set_write_buffer_limits(high=0)  # so that `drained` means that nothing is left
        self._gentle = GentleTransport(transport, self)
        super().connection_made(self._gentle)  # type: ignore[arg-type]
        self._all.add(self)
        self._enter(Phase.HEADER)

    def data_received(self, data: bytes) -> None:
        """asyncio's call."""
        if self._phase is Phase.CLOSING:
            return
        if self._phase is Phase.IDLE:
            self._enter(Phase.HEADER)
        super().data_received(data)
        self._settle()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's call."""
        self._enter(Phase.CLOSING)
        self._stop_clock()
        self._all.remove(self)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """uvicorn's call."""
        super().on_response_complete()
        self._settle()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's call: what came is no HTTP, or its header is too large."""
        too_large = (
            self._phase is Phase.HEADER
            and self.conn.our_state is h11.IDLE
            and (len(self.conn.trailing_data[0]) > self._limits.max_header_bytes)
        )
        refused = HeaderTooLarge("the header is too large") if too_large else BadFraming(msg)
        self._all.refusals.note(refused)
        headers, body = problem(refused)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            events = (
                h11.Response(status_code=refused.status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def close_gently(self, transport: asyncio.Transport) -> None:
        """End the connection so that the client can read what was sent (RFC 9112, section 9.6)."""
        if self._phase is Phase.CLOSING:
            return
        self._enter(Phase.CLOSING)
        if self.conn.their_state in (h11.DONE, h11.IDLE, h11.CLOSED, h11.MUST_CLOSE):
            transport.close()
        elif not transport.is_closing() and transport.can_write_eof():
            # A socket that is closed over unread bytes resets the connection, and the answer is lost.
            transport.resume_reading()
            transport.write_eof()

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        with_us = {**scope, "extensions": {CONNECTION: self}}
        await self._application(with_us, receive, send)

    def _settle(self) -> None:
        """Enter the phase that uvicorn's and h11's states amount to."""
        if self._phase is Phase.CLOSING:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._enter(Phase.BUSY)
        elif self.conn.their_state is h11.SEND_BODY:
            self._enter(Phase.LINGER)
        elif self._phase is not Phase.HEADER:
            self._enter(Phase.HEADER if self.conn.trailing_data[0] else Phase.IDLE)

    def _enter(self, phase: Phase) -> None:
        if phase is self._phase:
            return
        self._phase = phase
        self._all.note(self, is_waiting=phase is not Phase.BUSY)
        self._stop_clock()
        seconds = {
            Phase.HEADER: self._limits.header_seconds,
            Phase.IDLE: self._limits.idle_seconds,
            Phase.LINGER: self._limits.linger_seconds,
            Phase.CLOSING: self._closing_seconds(),
        }.get(phase)
        if seconds is not None:
            self._deadline = self.loop.call_later(seconds, self.cut)

    def _closing_seconds(self) -> float:
        is_unsent = self._transport is not None and self._transport.get_write_buffer_size() > 0
        return self._limits.answer_seconds if is_unsent else self._limits.linger_seconds

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class GentleTransport:
    """What uvicorn writes to: closing it lets the client read what was sent.

    uvicorn writes a header, a body and the end one by one. They leave together, with one call of the system.
    """

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport = transport
        self._connection = connection
        self._unsent: list[bytes] = []
        self._is_closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send this, at the end of this turn of the event loop at the latest."""
        if not data or self._is_closing:
            return
        if not self._unsent:
            self._connection.loop.call_soon(self.flush)
        self._unsent.append(data)

    def flush(self) -> None:
        """Send now what was written."""
        unsent, self._unsent = self._unsent, []
        if unsent and not self._transport.is_closing():
            self._transport.write(b"".join(unsent))

    def is_closing(self) -> bool:
        """Also while the client is still to read."""
        return self._is_closing or self._transport.is_closing()

    def close(self) -> None:
        """End the connection, gently."""
        self.flush()
        self._is_closing = True
        self._connection.close_gently(self._transport)
