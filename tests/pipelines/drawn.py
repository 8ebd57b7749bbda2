"""Reads the image off what a pipeline or a call of it has returned, as numbers from 0 to 1."""

from typing import Any

import numpy


def pixels(output: Any) -> numpy.ndarray:
    """The numbers of the first image of what a pipeline returned, in 0 .. 1."""
    drawn = output.images if hasattr(output, "images") else output.image
    while isinstance(drawn, list):
        drawn = drawn[0]
    return numpy.asarray(drawn, dtype=numpy.float64)


def image_of(call: Any) -> numpy.ndarray:
    """The first image of a call that has ended; raises what ended it otherwise."""
    if call.error is not None:
        raise call.error
    return pixels(call.result)
