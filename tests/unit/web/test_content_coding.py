"""S13: a compressed body is read as if it were plain, and never costs more than a plain one may."""

import gzip
import time
import tracemalloc
import zlib
from io import BytesIO

import pytest
from werkzeug.exceptions import RequestEntityTooLarge

from web.api.request import MAX_MEMBERS, coding_of, decoded
from web.refusals import MalformedBody, UnsupportedMediaType

PLAIN = b'{"prompt": "a red heart"}'


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("GZIP", "gzip"),
        (" x-gzip ,", "x-gzip"),
        ("deflate", "deflate"),
    ],
)
def test_S13_a_coding_is_known_by_its_name(header: str | None, coding: str | None) -> None:
    assert coding_of(header) == coding


@pytest.mark.parametrize("header", ["br", "zstd", "gzip, gzip", "aws-chunked", "gzip;q=1", "a" * 8000])
def test_S13_an_unknown_coding_is_named_with_those_that_are_read(header: str) -> None:
    with pytest.raises(UnsupportedMediaType) as refused:
        coding_of(header)
    assert header[:20] in refused.value.detail
    assert len(refused.value.detail) < 300
    assert refused.value.headers == {"Accept-Encoding": "gzip, deflate"}


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        ("gzip", gzip.compress(PLAIN)),
        ("x-gzip", gzip.compress(PLAIN[:9]) + gzip.compress(PLAIN[9:])),
        ("deflate", zlib.compress(PLAIN)),
    ],
)
def test_S13_what_is_compressed_is_read(coding: str, data: bytes) -> None:
    with decoded(BytesIO(data), coding, len(PLAIN)) as plain:
        assert plain.read() == PLAIN
    with pytest.raises(RequestEntityTooLarge):
        decoded(BytesIO(data), coding, len(PLAIN) - 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is incomplete"),
        (PLAIN, "cannot be decompressed as gzip"),
        (gzip.compress(PLAIN)[:-1], "is incomplete"),
        (gzip.compress(PLAIN) + b"more", "cannot be decompressed as gzip"),
        (gzip.compress(b"") * (MAX_MEMBERS + 1), "more than 64 gzip members"),
    ],
)
def test_S13_what_is_not_compressed_as_it_says_is_malformed(data: bytes, words: str) -> None:
    with pytest.raises(MalformedBody) as refused:
        decoded(BytesIO(data), "gzip", 1000)
    assert words in refused.value.detail


def test_S13_a_bomb_costs_no_more_than_its_refusal() -> None:
    bomb = gzip.compress(bytes(60_000_000))
    assert len(bomb) < 65_536
    began = time.perf_counter()
    with pytest.raises(RequestEntityTooLarge):
        decoded(BytesIO(bomb), "gzip", 65_536)
    with pytest.raises(MalformedBody):
        decoded(BytesIO(gzip.compress(b"") * 3000), "gzip", 65_536)
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_S13_a_bomb_is_not_unfolded_before_it_is_refused(coding: str) -> None:
    large = bytes(50_000_000)
    bomb = gzip.compress(large) if coding == "gzip" else zlib.compress(large)
    del large
    tracemalloc.start()
    try:
        with pytest.raises(RequestEntityTooLarge):
            decoded(BytesIO(bomb), coding, 1000)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 1_000_000
