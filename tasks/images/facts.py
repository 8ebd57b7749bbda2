"""What a file is before anything is drawn from it: a PNG, JPEG or WebP of one picture, whole, within limits.

The web asks it about every upload, the task before it decodes. It bounds what a file may cost: the format is
told by its first bytes, the size by its header, and only then is anything decoded. Knows Pillow and no numpy,
which the API is served without; pixels are `tasks.images.pixels`.
"""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

MAX_DECODED_WEBP = 12_500_000
"""Pixels. Pillow takes 16 bytes for each, four times what it takes for other formats; whether the file is
whole it finds out when it opens it, whatever its size."""
MAX_SCANS, MAX_MARKS = 100, 10_000
"""Of a JPEG. Encoders write about ten; each is a pass over the whole picture for a few dozen bytes."""
ORIENTATION = 0x0112  # the tag of EXIF
_SIDEWAYS = frozenset({5, 6, 7, 8})
_PREVIEW = (64, 64)
_PNG_MARK, _JPEG_MARK = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_MARK = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)  # those with a length, and the end
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


class ImageUnreadable(ValueError):
    """The file is no image that can be drawn from; the message says why, as what follows "the file"."""


@dataclass(frozen=True)
class ImageLimits:
    """The largest picture that is read; `max_bytes` is of the file, pixels and sides of what is in it."""

    max_bytes: int
    max_pixels: int
    max_side: int


@dataclass(frozen=True)
class ImageFacts:
    """Pixels of the picture as it is looked at, turned as its EXIF says, and its media type."""

    width: int
    height: int
    media_type: str


def read(data: bytes, limits: ImageLimits) -> ImageFacts:
    """What the file is; it is decoded once, to see that all of it is there. Raises `ImageUnreadable`.

    Takes up to 200 MB of memory and two seconds for 50 million pixels, a plain JPEG 4 MB; so its caller does
    one at a time.
    """
    if len(data) > limits.max_bytes:
        raise ImageUnreadable(f"is larger than {limits.max_bytes} bytes")
    media_type = media_type_of(data)
    image = open_image(data, limits)
    width, height = image.size[::-1] if orientation_of(image) in _SIDEWAYS else image.size
    try:
        # Of a JPEG all bytes are read, and few pixels made.
        image.draft(image.mode, _PREVIEW)
        if media_type != "image/webp" or width * height <= MAX_DECODED_WEBP:
            image.load()
        open_image(data).verify()  # the check sums of a PNG, which decoding passes over
    except Exception as error:
        raise broken(error) from error
    return ImageFacts(width, height, media_type)


def open_image(data: bytes, limits: ImageLimits | None = None) -> ImageFile:
    """The one picture of the file, not decoded yet. Raises `ImageUnreadable`."""
    media_type = media_type_of(data)
    if media_type == "image/webp" and limits is not None:
        # Pillow makes room for the whole canvas when it opens one.
        _check_size(_webp_size(data), limits)
    if media_type == "image/jpeg" and _is_of_too_many_scans(data):
        raise ImageUnreadable(f"is a JPEG of more than {MAX_SCANS} scans or {MAX_MARKS} segments")
    try:
        # Not by `Image.open`, which asks every format that Pillow knows, and warns of sizes by its own limit.
        image = _OPENERS[media_type](io.BytesIO(data))
        num_frames = int(getattr(image, "n_frames", 1))
    except Exception as error:
        raise broken(error) from error
    if limits is not None:
        _check_size(image.size, limits)
    if num_frames > 1:
        raise ImageUnreadable(f"is animated ({num_frames} frames); an image that stands still is read")
    return image


def orientation_of(image: ImageFile) -> int:
    """How EXIF says that it is to be turned, 1 to 8 as there; 1 where it says nothing that can be read."""
    try:
        found = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow trips over broken EXIF in many ways, and the picture is whole
        return 1
    return found if found in range(1, 9) else 1


def media_type_of(data: bytes) -> str:
    """By its first bytes, whatever its name and its sender say. Raises `ImageUnreadable` for all others."""
    if data.startswith(_PNG_MARK):
        return "image/png"
    if data.startswith(_JPEG_MARK):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise ImageUnreadable(f"is {_name_of_other(data)}; PNG, JPEG and WebP images are read")


def _name_of_other(data: bytes) -> str:
    if not data:
        return "empty"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a video, or a HEIC or AVIF")
    start = data[:16].lstrip() if data[:1] in b"<\r\n\t " else data[:16]
    return next((name for mark, name in _OTHERS.items() if start.startswith(mark)), "no image that is known")


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if min(size) < 1:
        raise ImageUnreadable("is broken or cut off: it has no pixels")
    if max(size) > limits.max_side:
        raise ImageUnreadable(f"has {width} x {height} pixels; a side may have {limits.max_side}")
    if width * height > limits.max_pixels:
        raise ImageUnreadable(f"has {width} x {height} pixels; {limits.max_pixels} in all are read")


def _webp_size(data: bytes) -> tuple[int, int]:
    """The canvas (RFC 9649, section 2; RFC 6386, section 9.1)."""
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
    raise ImageUnreadable("is broken or cut off: it is a WebP without a picture")


def _is_of_too_many_scans(data: bytes) -> bool:
    """Looks at the first picture of a JPEG alone, whatever follows it (ITU-T T.81, section B.1.1)."""
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
    """Whatever a broken file makes Pillow trip over: OSError, SyntaxError, ValueError, struct.error, ..."""
    return ImageUnreadable(f"is broken or cut off: {str(error)[:100] or type(error).__name__}")
