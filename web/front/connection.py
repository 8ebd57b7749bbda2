"""HTTP/1.1 over uvicorn and h11, with a deadline for every phase in which the server waits for the client.

It tracks the phase of each connection, chooses which connection to close when there are too many, and closes
it so that the client can still read the answer. `web.front.exchange` owns the deadlines of an answer.
"""

import asyncio
import math
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from enum import Enum
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from web.front.exchange import CONNECTION, CUT_SHORT, Message, Receive, Scope, Send
from web.front.limits import Limits
from web.front.parser import LINE_ENDS, Parser
from web.front.refusals import BadFraming, HeaderTooLarge, RefusalLog, Refused, UnknownCoding, problem

SEND_BUFFER_BYTES = 65_536
"""The kernel's send buffer, which could otherwise hold megabytes for a slow client; Linux doubles it."""
RESET = struct.pack("ii", 1, 0)
"""`SO_LINGER` with a time of 0: unsent data is dropped; otherwise the kernel would retry for hours."""

MAX_FAULT_CHARACTERS = 200

GRACE_SECONDS = 1.0
"""While there is room, a connection that has been silent for less than this is not closed for another."""


class Phase(Enum):
    """The phase of a connection."""

    HEADER = "header"
    BUSY = "busy"
    LINGER = "linger"
    """The answer was sent before the body was read: the rest is discarded, then the connection continues."""
    IDLE = "idle"
    CLOSING = "closing"
    """The last answer was sent: input is discarded until the client closes the connection too."""


class Connections:
    """All connections of one process, at most `max_connections`.

    Above four fifths of the limit a new connection closes another: the one whose client has been silent
    longest, unless that is less than `GRACE_SECONDS`, so that a client has time to send its request. At the
    limit the grace does not apply.
    """

    def __init__(self, max_connections: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_connections = max_connections
        self._num_roomy = max_connections - max_connections // 5
        self._clock = clock
        self._open: set[Connection] = set()
        self._waiting: dict[Connection, float] = {}
        """When each connection began to wait for its client; the longest wait comes first."""
        self.num_cut: Counter[str] = Counter()
        """The number of closed connections by phase."""
        self.refusals = RefusalLog()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: "Connection") -> None:
        """Add a connection. If there are too many, close another one, or this one if no other waits."""
        self._open.add(connection)
        slowest, since = next(iter(self._waiting.items()), (connection, math.inf))
        is_late = self._clock() - since >= GRACE_SECONDS
        if len(self) > self._max_connections or (len(self) > self._num_roomy and is_late):
            # At once: until its socket is closed, the next new connection would choose it again.
            self.remove(slowest)
            slowest.cut()

    def note(self, connection: "Connection", *, is_waiting: bool) -> None:
        """Move a connection to the end of the order, since it began to wait or made progress just now."""
        self._waiting.pop(connection, None)
        if is_waiting and connection in self._open:
            self._waiting[connection] = self._clock()

    def remove(self, connection: "Connection") -> None:
        """Remove a connection that has ended or is about to end."""
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
        self.conn: Parser = Parser(limits.max_header_bytes)
        self._phase = Phase.BUSY
        self._deadline: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._gentle: GentleTransport | None = None
        self._is_half_closed = False
        self._is_stopping = False
        self._lingers_since = self._heard_at = 0.0
        self._num_dropped = 0

    @property
    def is_open(self) -> bool:
        """Whether an answer could still reach the client."""
        return self._phase is not Phase.CLOSING

    @property
    def is_stopping(self) -> bool:
        """Whether the process is about to exit, so that this answer is the last one on the connection."""
        return self._is_stopping

    async def drained(self) -> None:
        """Wait until everything sent has left this process, or the client has disconnected."""
        if self._gentle is not None:
            self._gentle.flush()
        await self.flow.drain()

    def abort(self) -> None:
        """Close the connection now and drop what the kernel still holds for it."""
        if self._transport is not None:
            if not self._transport.is_closing():
                self._transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, RESET
                )
            self._transport.abort()

    def note_waiting(self, is_waiting: bool) -> None:
        """Set whether the server waits for the client to send more, or to read what was sent."""
        if self._phase is Phase.BUSY:
            self._all.note(self, is_waiting=is_waiting)

    def cut(self) -> None:
        """Close the connection because its client took too long."""
        self._all.num_cut[self._phase.value] += 1
        if self._transport is not None and not self._transport.get_write_buffer_size():
            self._transport.close()
        else:
            self.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio."""
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        transport.set_write_buffer_limits(high=0)  # so that `drained` means that the buffer is empty
        self._gentle = GentleTransport(transport, self)
        super().connection_made(self._gentle)  # type: ignore[arg-type]
        self._all.add(self)
        self._enter(Phase.HEADER)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._phase in (Phase.LINGER, Phase.CLOSING):
            self._note_dropped(len(data))
        if self._phase is Phase.CLOSING:
            return
        if self._phase is Phase.IDLE:
            if not data.strip(LINE_ENDS):
                return  # no request begins with these bytes: see `Parser`
            self._enter(Phase.HEADER)
        super().data_received(data)
        self._settle()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Called by asyncio at the end of input. Returns whether the connection stays open for an answer.

        A disconnected client looks the same as one that has closed only its sending side. Views see it as
        disconnected, so that none keeps waiting; their answer is sent anyway.
        """
        if self._phase is not Phase.BUSY or self._transport is None or not self._transport.can_write_eof():
            return False
        self._is_half_closed = True
        self.cycle.message_event.set()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._enter(Phase.CLOSING)
        self._stop_clock()
        self._all.remove(self)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Called by uvicorn."""
        super().on_response_complete()
        self._settle()

    def shutdown(self) -> None:
        """Called by uvicorn: the process is about to exit."""
        self._is_stopping = True
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn: the input is not HTTP, or its header is too large."""
        refused = self._fault(msg)
        self._all.refusals.note(refused)
        headers, body = problem(refused)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            events = (
                h11.Response(
                    status_code=refused.status,
                    headers=headers,
                    reason=HTTPStatus(refused.status).phrase.encode(),
                ),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # its view has already answered
            self.cycle.message_event.set()

    def close_gently(self, transport: asyncio.Transport) -> None:
        """Close the connection so that the client can read the answer (RFC 9112, section 9.6).

        Closing a socket with unread input resets the connection, and an answer that the client has not read
        may be lost. So the server closes its sending side first, and discards what still arrives.
        """
        if self._phase is Phase.CLOSING:
            return
        self._enter(Phase.CLOSING)
        # A connection pool notices a closed idle connection only at its next use: do not wait for that.
        is_idle = self._is_stopping and self.conn.is_between_requests
        if self._is_half_closed or is_idle:
            transport.close()
        elif not transport.is_closing() and transport.can_write_eof():
            transport.resume_reading()
            transport.write_eof()

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_whole = False

        async def receive_or_leave() -> Message:
            """Like uvicorn's `receive`, but also reports a disconnect for a client that sends no more."""
            nonlocal is_whole
            if is_whole and self._is_half_closed:
                return {"type": "http.disconnect"}
            message = await receive()
            if self._is_half_closed and (is_whole or message.get("more_body", False)):
                return {"type": "http.disconnect", CUT_SHORT: not is_whole}
            is_whole = not message.get("more_body", False)
            return message

        with_us = {**scope, "extensions": {CONNECTION: self}}
        await self._application(with_us, receive_or_leave, send)

    def _fault(self, otherwise: str) -> Refused:
        """Return the reason why the input could not be read."""
        fault = self.conn.fault
        if fault is None:
            return BadFraming(otherwise)
        if fault.error_status_hint == 431 and self.conn.our_state is h11.IDLE:
            return HeaderTooLarge(f"the header has more than {self._limits.max_header_bytes} bytes")
        detail = f"the request could not be parsed: {str(fault)[:MAX_FAULT_CHARACTERS]}"
        return UnknownCoding(detail) if fault.error_status_hint == 501 else BadFraming(detail)

    def _settle(self) -> None:
        """Set the phase from the states of uvicorn and h11."""
        if self._phase is Phase.CLOSING:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._enter(Phase.BUSY)
        elif self._is_half_closed:
            self.transport.close()
        elif self.conn.their_state is h11.SEND_BODY:
            self._enter(Phase.LINGER)
        elif self._phase is not Phase.HEADER:
            self._enter(Phase.HEADER if self.conn.trailing_data[0] else Phase.IDLE)

    def _enter(self, phase: Phase) -> None:
        if phase is self._phase:
            return
        is_new = self._phase is not Phase.LINGER
        self._phase = phase
        self._all.note(self, is_waiting=phase is not Phase.BUSY)
        self._stop_clock()
        if phase in (Phase.LINGER, Phase.CLOSING):
            if is_new:
                self._num_dropped = 0
            self._lingers_since = self._heard_at = self.loop.time()
            self._watch_lingering()
        elif phase is not Phase.BUSY:
            is_idle = phase is Phase.IDLE
            seconds = self._limits.idle_seconds if is_idle else self._limits.header_seconds
            self._deadline = self.loop.call_later(seconds, self.cut)

    def _note_dropped(self, num_bytes: int) -> None:
        self._heard_at = self.loop.time()
        self._num_dropped += num_bytes
        if self._num_dropped > self._limits.max_dropped_bytes:
            self.cut()

    def _watch_lingering(self) -> None:
        """Close the connection if its client is silent for too long or too slow; else check again later."""
        until = self._lingers_until()
        if self.loop.time() >= until:
            self.cut()
        else:
            self._deadline = self.loop.call_at(until, self._watch_lingering)

    def _lingers_until(self) -> float:
        if self._transport is not None and self._transport.get_write_buffer_size():
            return self._lingers_since + self._limits.answer_seconds
        seconds = self._limits.body_seconds + self._num_dropped / self._limits.upload_bytes_per_second
        return min(self._heard_at + self._limits.linger_seconds, self._lingers_since + seconds)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class GentleTransport:
    """The transport that uvicorn writes to; closing it lets the client read the answer.

    uvicorn writes header, body and end one by one. They are sent together, with one system call.
    """

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport = transport
        self._connection = connection
        self._unsent: list[bytes] = []
        self._is_closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send this at the latest at the end of this iteration of the event loop."""
        if not data or self._is_closing:
            return
        if not self._unsent:
            self._connection.loop.call_soon(self.flush)
        self._unsent.append(data)

    def flush(self) -> None:
        """Send what was written now."""
        unsent, self._unsent = self._unsent, []
        if unsent and not self._transport.is_closing():
            self._transport.write(b"".join(unsent))

    def is_closing(self) -> bool:
        """True also while the client still has to read the answer."""
        return self._is_closing or self._transport.is_closing()

    def close(self) -> None:
        """Close the connection so that the client can read the answer."""
        self.flush()
        self._is_closing = True
        self._connection.close_gently(self._transport)
