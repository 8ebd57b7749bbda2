"""Checks that a file is a complete PNG, JPEG or WebP with one image, within limits.

The API checks every upload with it, and the task opens files with it. It limits the cost of a file: the first
bytes give the format and the header the size before anything is decoded. It uses Pillow without numpy, which
the API's image lacks; `tasks.images.inputs` decodes pixels.
"""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from tasks.errors import ImageUnreadable

MAX_DECODED_WEBP = 12_500_000
"""In pixels, for each of which Pillow needs 16 bytes, four times as many as for other formats. It detects a
truncated WebP of any size when opening it."""
MAX_SCANS, MAX_MARKS = 100, 10_000
"""Limits of a JPEG. Encoders write about ten scans; a few dozen bytes can cost a pass over the image."""
ORIENTATION = 0x0112  # the EXIF tag
_SIDEWAYS = frozenset({5, 6, 7, 8})
_PREVIEW = (64, 64)
_PNG_MARK, _JPEG_MARK = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_MARK = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)  # markers with a length, and the end
_END_OF_IMAGE, _START_OF_SCAN = b"\xd9", b"\xda"
_OPENERS: Mapping[str, Callable[[io.BytesIO], ImageFile]] = {
    "image/png": PngImageFile,
    "image/jpeg": JpegImageFile,
    "image/webp": WebPImageFile,
}
MEDIA_TYPES = tuple(_OPENERS)
_OTHERS: Mapping[bytes, str] = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"8BPS": "a PSD",
    b"<svg": "an SVG",
    b"<?xml": "an SVG or another XML",
    b"\xff\x0a": "a JPEG XL",
    b"\0\0\0\x0cJXL": "a JPEG XL",
    b"\0\0\0\x0cjP": "a JPEG 2000",
}
_BRANDS: Mapping[bytes, str] = {b"avif": "an AVIF", b"heic": "a HEIC", b"heix": "a HEIC", b"mif1": "a HEIC"}


@dataclass(frozen=True)
class ImageLimits:
    """The largest file in bytes, and the largest image in pixels and in pixels per side."""

    max_bytes: int
    max_pixels: int
    max_side: int


@dataclass(frozen=True)
class ImageFacts:
    """Width and height in pixels, after the rotation that EXIF asks for, and the media type."""

    width: int
    height: int
    media_type: str


def read(data: bytes, limits: ImageLimits) -> ImageFacts:
    """Check the file and decode it once to see that it is complete. Raises `ImageUnreadable`.

    For 50 million pixels this takes up to 200 MB of memory and two seconds, for a baseline JPEG 4 MB; so its
    caller must run one at a time.
    """
    if len(data) > limits.max_bytes:
        raise ImageUnreadable(f"is larger than {limits.max_bytes} bytes")
    media_type = media_type_of(data)
    image = open_image(data, limits)
    width, height = image.size[::-1] if orientation_of(image) in _SIDEWAYS else image.size
    try:
        # Reads every byte of a JPEG but produces few pixels.
        image.draft(image.mode, _PREVIEW)
        if media_type != "image/webp" or width * height <= MAX_DECODED_WEBP:
            image.load()
        open_image(data).verify()  # checks the checksums of a PNG, which decoding skips
    except Exception as error:
        raise broken(error) from error
    return ImageFacts(width, height, media_type)


def open_image(data: bytes, limits: ImageLimits | None = None) -> ImageFile:
    """Open the file's single image without decoding it. Raises `ImageUnreadable`."""
    media_type = media_type_of(data)
    if media_type == "image/webp" and limits is not None:
        # Pillow allocates the whole canvas when it opens a WebP.
        _check_size(_webp_size(data), limits)
    if media_type == "image/jpeg" and _is_of_too_many_scans(data):
        raise ImageUnreadable(f"is a JPEG of more than {MAX_SCANS} scans or {MAX_MARKS} segments")
    try:
        # `Image.open` would try every format that Pillow knows, and warn about sizes by its own limit.
        image = _OPENERS[media_type](io.BytesIO(data))
        num_frames = int(getattr(image, "n_frames", 1))
    except Exception as error:
        raise broken(error) from error
    if limits is not None:
        _check_size(image.size, limits)
    if num_frames > 1:
        raise ImageUnreadable(f"is animated ({num_frames} frames); only still images are accepted")
    return image


def orientation_of(image: ImageFile) -> int:
    """The orientation in EXIF, 1 to 8; 1 if EXIF is absent or unreadable."""
    try:
        found = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # broken EXIF raises many kinds of errors, and the image itself is intact
        return 1
    return found if found in range(1, 9) else 1


def media_type_of(data: bytes) -> str:
    """The media type by the file's first bytes alone. Raises `ImageUnreadable` for other formats."""
    if data.startswith(_PNG_MARK):
        return "image/png"
    if data.startswith(_JPEG_MARK):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise ImageUnreadable(f"is {_name_of_other(data)}; PNG, JPEG and WebP are accepted")


def _name_of_other(data: bytes) -> str:
    if not data:
        return "empty"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a video, or a HEIC or AVIF")
    start = data[:16].lstrip() if data[:1] in b"<\r\n\t " else data[:16]
    return next(
        (name for mark, name in _OTHERS.items() if start.startswith(mark)), "not in a known image format"
    )


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if min(size) < 1:
        raise ImageUnreadable("is broken or cut off: it has no pixels")
    if max(size) > limits.max_side:
        raise ImageUnreadable(f"has {width} x {height} pixels; the limit is {limits.max_side} per side")
    if width * height > limits.max_pixels:
        raise ImageUnreadable(f"has {width} x {height} pixels; the limit is {limits.max_pixels} in total")


def _webp_size(data: bytes) -> tuple[int, int]:
    """The canvas size (RFC 9649, section 2; RFC 6386, section 9.1)."""
    head = data[:30].ljust(30, b"\0")
    match head[12:16]:
        case b"VP8X":
            return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
        case b"VP8L" if head[20] == 0x2F:
            bits = int.from_bytes(head[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 " if head[23:26] == b"\x9d\x01\x2a":
            sides = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
            return sides[0] & 0x3FFF, sides[1] & 0x3FFF
    raise ImageUnreadable("is broken or cut off: it is a WebP without an image")


def _is_of_too_many_scans(data: bytes) -> bool:
    """Whether the first image of a JPEG has too many scans or markers (ITU-T T.81, section B.1.1)."""
    place, num_scans = 2, 0
    for _ in range(MAX_MARKS):
        mark = _MARK.search(data, place)
        if mark is None or mark[1] == _END_OF_IMAGE:
            return False
        num_scans += mark[1] == _START_OF_SCAN
        if num_scans > MAX_SCANS:
            return True
        place = mark.end() + int.from_bytes(data[mark.end() : mark.end() + 2])
    return True


def broken(error: Exception) -> ImageUnreadable:
    """The error for whatever Pillow raises on a broken file: OSError, SyntaxError, struct.error, ..."""
    return ImageUnreadable(f"is broken or cut off: {str(error)[:100] or type(error).__name__}")
