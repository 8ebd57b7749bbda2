"""Encodes an image as PNG (RFC 2083), WebP or JPEG, with the parameters that are embedded in it.

The options of each format were measured; docs/explanation/what-stands-beside-a-step.md has the table. It does
not know where pixels come from, nor where files are stored.
"""

import io
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from catalogue.parameters import PARAMETERS, in_one_text
from storage.job_views import Job

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]  # (H, W, 3)

# Pillow's fastest options that enlarge images of the shipped model by at most 5 %.
PNG_OPTIONS: Mapping[str, Any] = {"compress_type": zlib.Z_RLE, "compress_level": 1}
WEBP_METHOD = 2  # 0 is no smaller than a PNG; 4 takes twice the time for 5 % less
JPEG_QUALITY = 90


def encode_image(
    pixels: Pixels,
    output_format: str,
    *,
    quality: int | None = None,
    parameters: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of the file; equal arguments give equal bytes. Raises `ValueError` for an unknown format.

    A PNG is lossless and ignores `quality`; a WebP is lossless without one. A JPEG has quality 90 by default,
    and always full colour resolution, since subsampling shows first at edges between flat colours. A PNG gets
    `parameters` as UTF-8 text chunks (`iTXt`) under their own names; other formats leave them out.
    """
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    match output_format:
        case "png":
            picture.save(buffer, "PNG", pnginfo=_chunks(parameters or {}), **PNG_OPTIONS)
        case "webp" if quality is None:
            picture.save(buffer, "WEBP", lossless=True, exact=True, method=WEBP_METHOD)
        case "webp":
            picture.save(buffer, "WEBP", quality=quality, method=WEBP_METHOD)
        case "jpeg":
            picture.save(buffer, "JPEG", quality=JPEG_QUALITY if quality is None else quality, subsampling=0)
        case _:
            raise ValueError(f"{output_format!r} is not an image format")
    return buffer.getvalue()


def content_type(output_format: str) -> str:
    """The IANA media type, whose subtypes are the names of our formats."""
    return f"image/{output_format}"


def parameters_of(job: Job, seed: int) -> dict[str, str]:
    """The parameters that determine one image of the job, by their API names, as texts to embed.

    A job with these parameters and `num_images` 1 generates the same image.
    """
    values = {**job.parameters.values(), "seed": seed}
    same = {name: values[name] for name, parameter in PARAMETERS.items() if parameter.changes_pixels}
    same |= same.pop("pipeline_parameters")
    # Input images and adapters that the job does not name are left out.
    words = {name: str(in_one_text(value)) for name, value in same.items() if value not in (None, [])}
    return {"software": "calotype", "model": job.model, **words, "job_id": job.id}


def _chunks(parameters: Mapping[str, str]) -> PngInfo:
    chunks = PngInfo()
    for name, value in parameters.items():
        chunks.add_itxt(name, value)
    return chunks
