"""`Content-Encoding` of a request: which codings are read, and how much may come out of one.

A kilobyte can become a megabyte. So nothing is decoded beyond the limit that holds for a plain body.
"""

import zlib

from werkzeug.exceptions import RequestEntityTooLarge

from web.refusals import MalformedBody, UnsupportedMediaType, quoted

_GZIP, _ZLIB = 31, 15  # zlib's window bits, which say the format too
_FORMATS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}
ACCEPTED = "gzip, deflate"
MAX_MEMBERS = 64
"""The most members that one gzip body may have (RFC 1952, section 2.2); each costs a decoder."""


def coding_of(header: str | None) -> str | None:
    """The coding that a `Content-Encoding` names, or nothing; raises `UnsupportedMediaType`."""
    names = [name.strip().lower() for name in (header or "").split(",")]
    codings = [name for name in names if name not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _FORMATS:
        named = quoted(", ".join(codings))
        raise UnsupportedMediaType(
            f"Content-Encoding is {named}: a body is sent plain, or as one of {ACCEPTED}",
            headers={"Accept-Encoding": ACCEPTED},  # RFC 9110, section 12.5.3
        )
    return codings[0]


def decoded(data: bytes, coding: str, max_bytes: int) -> bytes:
    """The plain body; raises `MalformedBody`, or `RequestEntityTooLarge` beyond `max_bytes`."""
    plain = bytearray()
    for _ in range(MAX_MEMBERS):
        decoder = zlib.decompressobj(_FORMATS[coding])
        try:
            plain += decoder.decompress(data, max_bytes - len(plain) + 1)
        except zlib.error as error:
            raise MalformedBody(f"the body is not {coding}, as its Content-Encoding says: {error}") from error
        if len(plain) > max_bytes:
            raise RequestEntityTooLarge
        if not decoder.eof:
            raise MalformedBody(f"the body ends in the middle of its {coding}")
        data = decoder.unused_data
        if not data:
            return bytes(plain)
    raise MalformedBody(f"the body has more than {MAX_MEMBERS} members of {coding}")
