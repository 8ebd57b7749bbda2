"""Flask's request class, adapted to this API: strict JSON, uploads in temporary files, compressed bodies.

A compressed kilobyte can become a megabyte, so nothing is decompressed beyond the limit of a plain body.
"""

import zlib
from contextlib import suppress
from tempfile import SpooledTemporaryFile
from typing import IO, Any, cast

from flask import Request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.utils import cached_property

from storage.temporary_space import writing
from web.api.json_body import parse_object, read_json_bytes
from web.refusals import MalformedBody, UnsupportedMediaType, quoted

_GZIP, _ZLIB = 31, 15  # zlib's window bits, which also select the format
_FORMATS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}
ACCEPTED = "gzip, deflate"
FILE_MEMORY_BYTES = 500_000
"""Above this size an uploaded file is written to a temporary file."""
PIECE_BYTES = 65_536
MAX_MEMBERS = 64
"""The most members of one gzip body (RFC 1952, section 2.2); each costs a decompressor."""


class ApiRequest(Request):
    """The request class of the application."""

    def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:  # noqa: ARG002
        """The body as a JSON object; raises a `Refusal` even where flask-openapi passes `silent`."""
        if not hasattr(self, "_json_object"):
            self._json_object = parse_object(read_json_bytes(self))
        return self._json_object

    @cached_property
    def stream(self) -> IO[bytes]:
        """The decompressed body, from which werkzeug reads data and forms; raises a `Refusal`."""
        coding = coding_of(self.headers.get("Content-Encoding"))
        sent: IO[bytes] = super().stream
        if coding is None:
            return sent
        assert self.max_content_length is not None  # `web.app` sets it
        plain = decoded(sent, coding, self.max_content_length)
        self._temporary_files.append(plain)
        return plain

    def _get_file_stream(
        self,
        total_content_length: int | None,  # noqa: ARG002
        content_type: str | None,  # noqa: ARG002
        filename: str | None = None,  # noqa: ARG002
        content_length: int | None = None,  # noqa: ARG002
    ) -> IO[bytes]:
        # It has no name, so that it ends with its process at the latest.
        file = cast("IO[bytes]", SpooledTemporaryFile(FILE_MEMORY_BYTES))  # noqa: SIM115
        self._temporary_files.append(file)
        return file

    @cached_property
    def _temporary_files(self) -> list[IO[bytes]]:
        """The decompressed body and the files of the form, of a form that is refused too."""
        return []

    def close(self) -> None:
        """Close them; Flask calls this at the end of the request."""
        for file in self._temporary_files:
            _discard(file)
        super().close()


def coding_of(header: str | None) -> str | None:
    """The coding that a `Content-Encoding` header names, if any; raises `UnsupportedMediaType`."""
    names = [name.strip().lower() for name in (header or "").split(",")]
    codings = [name for name in names if name not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _FORMATS:
        named = quoted(", ".join(codings))
        raise UnsupportedMediaType(
            f"Content-Encoding {named} is not supported: send the body uncompressed or as one of {ACCEPTED}",
            headers={"Accept-Encoding": ACCEPTED},  # RFC 9110, section 12.5.3
        )
    return codings[0]


def decoded(sent: IO[bytes], coding: str, max_bytes: int) -> IO[bytes]:
    """The decompressed body, in a temporary file if it is large.

    Raises `MalformedBody`, or `RequestEntityTooLarge` beyond `max_bytes`.
    """
    plain = cast("IO[bytes]", SpooledTemporaryFile(FILE_MEMORY_BYTES))  # noqa: SIM115 (the request closes it)
    try:
        with writing():
            _decompress(sent, coding, plain, max_bytes)
            plain.seek(0)
    except BaseException:
        _discard(plain)
        raise
    return plain


def _discard(file: IO[bytes]) -> None:
    with suppress(OSError):  # on a full disk it is closed, and raises because it cannot write the rest
        file.close()


def _decompress(sent: IO[bytes], coding: str, plain: IO[bytes], max_bytes: int) -> None:
    data = sent.read(PIECE_BYTES)
    for _ in range(MAX_MEMBERS):
        decoder = zlib.decompressobj(_FORMATS[coding])
        while not decoder.eof:
            try:
                piece = decoder.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise MalformedBody(
                    f"the body cannot be decompressed as {coding}, which its Content-Encoding names: {error}"
                ) from error
            if plain.write(piece) and plain.tell() > max_bytes:
                raise RequestEntityTooLarge
            data = decoder.unconsumed_tail
            if not data and not decoder.eof and len(piece) < PIECE_BYTES:
                data = sent.read(PIECE_BYTES)
                if not data:
                    raise MalformedBody(f"the {coding} body is incomplete")
        data = decoder.unused_data or sent.read(PIECE_BYTES)
        if not data:
            return
    raise MalformedBody(f"the body has more than {MAX_MEMBERS} {coding} members")
