"""Reads request bodies before a thread is taken, and limits their size, their duration and their total size.

Any client may send a small body, which is held in memory; a larger one is written to a temporary file. A
function that the front receives decides which requests may bring a larger one. Files count from their first
byte until the view has ended, so that their disk space is bounded. It knows no route and no key.
"""

import asyncio
import io
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from tempfile import TemporaryFile
from typing import BinaryIO, cast

import structlog

from storage.temporary_space import TemporarySpaceFull
from web.front.exchange import Exchange
from web.front.held import Held
from web.front.limits import Limits
from web.front.refusals import BodyTooSlow, Busy, DiskFull
from web.front.wsgi import UnreadBody

log = structlog.get_logger()

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

    async def read(self, exchange: Exchange) -> tuple[BinaryIO | UnreadBody, int | None]:
        """Return the body and its length. A body that is too large stays unread; the view refuses its length.

        The caller closes it. Raises `BodyTooSlow` and `ClientGone`, and for a file `Busy` and `DiskFull`.
        """
        small = io.BytesIO()
        if not exchange.has_body:
            return small, None
        length = exchange.content_length or 0
        max_bytes, has_ended = self._limits.max_body_bytes, False
        if length <= max_bytes:
            seconds = self._limits.body_seconds
            has_ended = await self._read_into(small, exchange, self._small, max_bytes, seconds)
            if has_ended and small.tell() <= max_bytes:
                return _from_start(small)
        # It is an upload: its declared or received length exceeds the limit for any client.
        max_bytes = await self._max_upload_of(exchange)
        if max(length, small.tell()) > max_bytes:
            return UnreadBody(), max(length, small.tell())
        body: BinaryIO = await self._upload(small, exchange, max_bytes, has_ended=has_ended)
        if body.tell() <= max_bytes:
            return _from_start(body)
        with body:
            return UnreadBody(), max(length, body.tell())

    def in_use(self, body: BinaryIO | UnreadBody, length: int | None) -> AbstractContextManager[None]:
        """Count a body while a view uses it, if it is in a file.

        The view copies it to the file of its form, and what it reads there to another one after it has closed
        the first: there are about two bytes on disk for each that is counted. What a compressed body grows by
        is not counted; if that fills the disk, the answer is `disk_full`.
        """
        is_file = not isinstance(body, (io.BytesIO, UnreadBody))
        return self._uploads.keeping(length or 0) if is_file else nullcontext()

    async def _upload(
        self, begun: io.BytesIO, exchange: Exchange, max_bytes: int, *, has_ended: bool
    ) -> BinaryIO:
        """Read the rest of the body into a file, which has no name and so ends with this process."""
        file: BinaryIO | None = None
        try:
            file = cast("BinaryIO", TemporaryFile())  # noqa: SIM115 (the caller closes it)
            file.write(begun.getvalue())
            if not has_ended:
                seconds = self._limits.body_seconds + max_bytes / self._limits.upload_bytes_per_second
                await self._read_into(file, exchange, self._uploads, max_bytes, seconds)
            file.flush()
        except OSError as error:
            full = TemporarySpaceFull.of(error)
            _discard(file)
            if full is None:
                raise Busy("this upload cannot be written to a file at present; try again later") from error
            log.error("temporary_space_full", directory=full.directory, num_free_bytes=full.num_free_bytes)
            raise DiskFull(full.detail) from error
        except BaseException:
            _discard(file)
            raise
        return file

    async def _read_into(
        self, body: BinaryIO, exchange: Exchange, held: Held, max_bytes: int, seconds: float
    ) -> bool:
        """Read until the body ends or exceeds `max_bytes`; return whether it ended."""
        with held.holding(exchange.connection.abort) as holding:
            _check_room(held, exchange.content_length or 0)
            holding.grow(body.tell())
            try:
                async with asyncio.timeout(seconds):
                    more = True
                    while more and body.tell() <= max_bytes:
                        exchange.connection.note_waiting(True)
                        piece, more = await exchange.receive()
                        _check_room(held, body.tell() + len(piece))
                        body.write(piece)  # into the page cache, which does not wait for the disk
                        holding.grow(len(piece))
            except TimeoutError:
                raise BodyTooSlow(f"the body was not complete within {seconds:.0f} s") from None
            finally:
                exchange.connection.note_waiting(False)
        return not more


def _check_room(held: Held, num_bytes: int) -> None:
    if held.is_in_use(num_bytes):
        raise Busy("other uploads take all the room; try again later")


def _discard(file: BinaryIO | None) -> None:
    if file is not None:
        with suppress(OSError):  # on a full disk it is closed, and raises because it cannot write the rest
            file.close()


def _from_start(body: BinaryIO) -> tuple[BinaryIO, int]:
    length = body.tell()
    body.seek(0)
    return body, length
