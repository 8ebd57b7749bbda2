"""Reads the image from the output of a pipeline or of a call, as numbers from 0 to 1."""

from typing import Any

import numpy


def pixels(output: Any) -> numpy.ndarray:
    """The numbers, 0 to 1, of the first image that a pipeline returned."""
    drawn = output.images if hasattr(output, "images") else output.image
    while isinstance(drawn, list):
        drawn = drawn[0]
    return numpy.asarray(drawn, dtype=numpy.float64)


def image_of(call: Any) -> numpy.ndarray:
    """The first image of a call that has ended; raises its error if it failed."""
    if call.error is not None:
        raise call.error
    return pixels(call.result)
