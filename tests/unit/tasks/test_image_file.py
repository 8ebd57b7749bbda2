"""The promise about files: lossless, and the same pixels give the same bytes."""

import io

import numpy as np
from PIL import Image

from tasks.image_file import encode_png


def test_a_png_holds_the_very_pixels_and_is_the_same_every_time() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = encode_png(pixels)
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.size) == ("PNG", (64, 48))
    assert np.array_equal(np.asarray(picture), pixels)
    assert encode_png(pixels) == data
