"""The picture of the null worker: two gradients, which every job gets and every bare PUT sends."""

from io import BytesIO

import numpy as np
from PIL import Image

SIDE = 64
_ROW = np.arange(SIDE, dtype=np.uint8) * 4
PIXELS = np.stack(np.broadcast_arrays(_ROW[:, None], _ROW[None, :], np.uint8(128)), axis=-1)


def png() -> bytes:
    """The picture as a file."""
    file = BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()
