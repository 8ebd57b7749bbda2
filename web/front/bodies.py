"""Reads request bodies before a thread is taken, and limits their size, their duration and their total size.

Any client may send a small body. A function that the front receives decides which requests may bring a larger
one. It knows no route and no key.
"""

import asyncio
from collections.abc import Awaitable, Callable

from web.front.exchange import Exchange
from web.front.held import Held
from web.front.limits import Limits
from web.front.refusals import BodyTooSlow
from web.front.wsgi import UnreadBody

MaxUploadOf = Callable[[Exchange], Awaitable[int]]
"""Returns the largest body that this request may have, in bytes."""


class Bodies:
    """All request bodies that one process is reading."""

    def __init__(self, limits: Limits, max_upload_of: MaxUploadOf) -> None:
        self._limits = limits
        self._max_upload_of = max_upload_of
        self._small = Held(limits.max_held_body_bytes)
        self._uploads = Held(limits.max_held_upload_bytes)

    @property
    def num_cut(self) -> int:
        """The number of connections that were closed to bound memory."""
        return self._small.num_cut + self._uploads.num_cut

    async def read(self, exchange: Exchange) -> tuple[bytes | UnreadBody, int | None]:
        """Return the body and its length. A body that is too large stays unread; the view refuses its length.

        Raises `BodyTooSlow` or `ClientGone`.
        """
        if not exchange.has_body:
            return b"", None
        length = exchange.content_length or 0
        body = bytearray()
        max_bytes, has_ended = self._limits.max_body_bytes, False
        if length <= max_bytes:
            seconds = self._limits.body_seconds
            has_ended = await self._read_into(body, exchange, self._small, max_bytes, seconds)
            if has_ended and len(body) <= max_bytes:
                return bytes(body), len(body)
        # It is an upload: its declared or received length exceeds the limit for any client.
        max_bytes = await self._max_upload_of(exchange)
        if not has_ended and max(length, len(body)) <= max_bytes:
            seconds = self._limits.body_seconds + max_bytes / self._limits.upload_bytes_per_second
            has_ended = await self._read_into(body, exchange, self._uploads, max_bytes, seconds)
        if has_ended and len(body) <= max_bytes:
            return bytes(body), len(body)
        return UnreadBody(), max(length, len(body))

    async def _read_into(
        self, body: bytearray, exchange: Exchange, held: Held, max_bytes: int, seconds: float
    ) -> bool:
        """Read until the body ends or exceeds `max_bytes`; return whether it ended."""
        with held.holding(exchange.connection.abort) as holding:
            holding.grow(len(body))
            try:
                async with asyncio.timeout(seconds):
                    more = True
                    while more and len(body) <= max_bytes:
                        exchange.connection.note_waiting(True)
                        piece, more = await exchange.receive()
                        body += piece
                        holding.grow(len(piece))
            except TimeoutError:
                raise BodyTooSlow(f"the body was not complete within {seconds:.0f} s") from None
            finally:
                exchange.connection.note_waiting(False)
        return not more
