"""A file of an upload as the pixels that an engine takes: sRGB without alpha, turned as it is looked at.

What is no picture, or too large a one, was refused when it came (`tasks.images.facts`); this says what each
kind of picture means as an image and as a mask. It knows neither jobs nor where files lie.
"""

import io
from typing import cast

import numpy as np
from PIL import Image, ImageCms
from PIL.ImageFile import ImageFile

from tasks.images.facts import broken, open_image, orientation_of

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

_SRGB = ImageCms.createProfile("sRGB")
_PROBE = np.stack(np.meshgrid(*[np.linspace(0, 255, 9, dtype=np.uint8)] * 3), axis=-1).reshape(27, 27, 3)
_COLOURS_OF_MODES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
OPAQUE = 255
PNG_BITS = 24  # where in the file its bit depth is


def pixels(data: bytes) -> Pixels:
    """uint8 sRGB of shape (H, W, 3); what is transparent lies on white. Raises `ImageUnreadable`.

    Colours go through the file's profile to sRGB, CMYK without one by Pillow's plain conversion; 16 bits lose
    their low byte.
    """
    image, alpha = _decoded(data)
    colours = _as_srgb(image)
    if alpha is not None:
        colours = Image.composite(colours, Image.new("RGB", colours.size, "white"), alpha)
    return np.array(colours)


def mask_pixels(data: bytes) -> Pixels:
    """uint8 of shape (H, W): 255 where the image is drawn anew, 0 where it stays. Raises `ImageUnreadable`.

    A file with transparency says it by that, whatever its colours are: what is transparent is drawn anew, as
    in OpenAI's API. Any other says it by its luminance, as in diffusers: white is drawn anew.
    """
    image, alpha = _decoded(data)
    if alpha is not None:
        return cast("Pixels", OPAQUE - np.array(alpha))
    return np.array(image.convert("L"))


def _decoded(data: bytes) -> tuple[Image.Image, Image.Image | None]:
    """The picture in 8 bits as L, RGB or CMYK, with its profile in `info`; its alpha unless it is opaque."""
    file = open_image(data)
    turn = _TURNS.get(orientation_of(file))
    try:
        file.load()
        image, alpha = _split(file, bits=data[PNG_BITS] if file.format == "PNG" else 8)
    except Exception as error:
        raise broken(error) from error
    if alpha is not None and cast("tuple[int, int]", alpha.getextrema())[0] == OPAQUE:
        alpha = None
    if turn is not None:
        image, alpha = image.transpose(turn), None if alpha is None else alpha.transpose(turn)
    image.info["icc_profile"] = file.info.get("icc_profile")
    return image, alpha


def _split(file: ImageFile, bits: int) -> tuple[Image.Image, Image.Image | None]:
    key = file.info.get("transparency")
    if file.mode == "P":
        shown = file.convert("RGB" if key is None else "RGBA")
    elif file.mode == "I;16":
        # Pillow's own conversion cuts off what is above 255, which makes almost everything white.
        shown = Image.fromarray((np.array(file, dtype=np.uint16) >> 8).astype(np.uint8))
    else:
        shown = file.convert("L") if file.mode == "1" else file
    if shown.mode in ("LA", "RGBA"):
        return shown.convert(shown.mode.removesuffix("A")), shown.getchannel("A")
    if key is None or file.mode == "P":
        return shown, None
    return shown, _all_but(np.array(file if bits == 16 and file.mode == "I;16" else shown), key, bits)


def _all_but(values: Pixels, key: int | tuple[int, int, int], bits: int) -> Image.Image:
    """Opaque but for one colour, which a PNG gives in bits of its own (PNG 3rd edition, section 11.3.1.1).

    Of colours in 16 bits Pillow has kept the high bytes alone, and these are compared.
    """
    if values.dtype == np.uint16:
        wanted = np.atleast_1d(key)
    else:
        wanted = np.atleast_1d(key) >> 8 if bits == 16 else np.atleast_1d(key) * (OPAQUE // (2**bits - 1))
    is_key = (values.reshape(*values.shape[:2], -1) == wanted).all(axis=2)
    return Image.fromarray(np.where(is_key, 0, OPAQUE).astype(np.uint8))


def _as_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        try:
            found = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if found.profile.xcolor_space.strip() == _COLOURS_OF_MODES[image.mode]:
                transform = ImageCms.buildTransform(found, _SRGB, image.mode, "RGB")
                if image.mode == "RGB" and _moves_nothing(transform):
                    return image
                return cast("Image.Image", ImageCms.applyTransform(image, transform))
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # a broken profile: the picture is shown as viewers show it, without one
    return image.convert("RGB")


def _moves_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether the colours are sRGB already, under whatever name: they then keep their values to the bit."""
    moved = cast("Image.Image", ImageCms.applyTransform(Image.fromarray(_PROBE), transform))
    return bool(np.abs(np.array(moved, dtype=np.int16) - _PROBE).max() <= 1)
