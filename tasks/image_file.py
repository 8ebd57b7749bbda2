"""Pixels to PNG bytes (RFC 2083), losslessly. Knows neither where they came from nor where they go."""

import io

import numpy as np
from PIL import Image

CONTENT_TYPE = "image/png"
COMPRESS_LEVEL = 3


def encode_png(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> bytes:
    """A PNG of `(H, W, 3)` uint8 pixels; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=COMPRESS_LEVEL)
    return buffer.getvalue()
