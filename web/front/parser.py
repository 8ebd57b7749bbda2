"""h11's HTTP/1.1 parser, with the tolerance that RFC 9112 asks of a server.

It handles the bytes between two requests and keeps the reason why a request could not be parsed. It knows no
socket and no deadline.
"""

import h11
from h11._connection import NEED_DATA, PAUSED

Event = h11.Event | type[NEED_DATA] | type[PAUSED]
LINE_ENDS = b"\r\n"
_IS_LAST = (h11.MUST_CLOSE, h11.CLOSED)


class Parser(h11.Connection):
    """h11's state machine for the server's side of one connection."""

    def __init__(self, max_header_bytes: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=max_header_bytes)
        self.fault: h11.RemoteProtocolError | None = None
        """The reason why the input is not HTTP."""

    @property
    def is_between_requests(self) -> bool:
        """Whether every request that has begun is complete."""
        return self.their_state in (h11.DONE, h11.IDLE, *_IS_LAST) and not self.trailing_data[0]

    def next_event(self) -> Event:
        """Like h11's. Raises `h11.RemoteProtocolError`."""
        if self.their_state is h11.IDLE:
            self._skip_empty_lines()
        elif self.their_state in _IS_LAST and self._receive_buffer:
            # Bytes after the last request are not read (RFC 9112, section 9.6). h11 would raise an error,
            # and the client would get that error instead of its answer.
            self._receive_buffer.maybe_extract_at_most(len(self._receive_buffer))
            return NEED_DATA
        try:
            return super().next_event()
        except h11.RemoteProtocolError as error:
            self.fault = error
            raise

    def _skip_empty_lines(self) -> None:
        """Some old clients send an extra line end after a body (RFC 9112, section 2.2)."""
        data = self._receive_buffer._data
        if data and data[0] in LINE_ENDS:
            self._receive_buffer.maybe_extract_at_most(len(data) - len(data.lstrip(LINE_ENDS)))
