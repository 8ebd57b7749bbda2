"""The input images of a claimed job: its files, read from the store and decoded into the engine's pixels.

Uploads were checked when they arrived (`tasks.images.facts`); this module defines what each kind of image
means as an image and as a mask. It does not know what the engine does with them.
"""

import io
from collections.abc import Mapping
from typing import cast

import numpy as np
from PIL import Image, ImageCms
from PIL.ImageFile import ImageFile

from catalogue.parameters import FILES, PARAMETERS, entries_of
from storage import files
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import BlobDamaged, BlobNotFound, FileGone
from storage.job_views import Job
from tasks.errors import ImageUnreadable, InputMissing
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
PNG_BITS = 24  # the offset of the bit depth in the file


def inputs_of(db: Database, blobs: Blobs, job: Job) -> Mapping[str, tuple[Pixels, ...]]:
    """The images that the job names, by parameter: RGB `(H, W, 3)`, a mask `(H, W)`, both uint8.

    Raises `InputMissing`, and `BlobUnavailable` if the store does not answer.
    """
    ids = job.parameters.file_ids
    if not ids:
        return {}
    try:
        data = files.read(db, blobs, job.account_id, ids)
    except FileGone as error:
        raise InputMissing(str(error)) from error
    except (BlobDamaged, BlobNotFound) as error:  # their messages hold the object's key
        what = "is damaged" if isinstance(error, BlobDamaged) else "is lost"
        raise InputMissing(f"the content of {' or '.join(ids)} {what}: upload it again") from error
    return {
        name: tuple(_input(name, id, data[id]) for id in named)
        for name in FILES
        if (named := entries_of(getattr(job.parameters, name)))
    }


def _input(name: str, id: str, data: bytes) -> Pixels:
    try:
        return mask_pixels(data) if PARAMETERS[name].is_mask else pixels(data)
    except ImageUnreadable as error:
        raise InputMissing(f"{name}: the file {id} cannot be read: {error}") from error


def pixels(data: bytes) -> Pixels:
    """Decode an image as uint8 sRGB of shape (H, W, 3), on white if transparent. Raises `ImageUnreadable`.

    Colours are converted to sRGB by the file's profile, CMYK without a profile by Pillow's simple conversion.
    Of 16-bit values the high byte is kept.
    """
    image, alpha = _decoded(data)
    colours = _as_srgb(image)
    if alpha is not None:
        colours = Image.composite(colours, Image.new("RGB", colours.size, "white"), alpha)
    return np.array(colours)


def mask_pixels(data: bytes) -> Pixels:
    """Decode a mask as uint8 of shape (H, W): 255 is repainted, 0 is kept. Raises `ImageUnreadable`.

    In a file with transparency, transparent pixels are repainted and colours are ignored, as in OpenAI's API.
    In any other file white pixels are repainted, by luminance, as in diffusers.
    """
    image, alpha = _decoded(data)
    if alpha is not None:
        return cast("Pixels", OPAQUE - np.array(alpha))
    return np.array(image.convert("L"))


def _decoded(data: bytes) -> tuple[Image.Image, Image.Image | None]:
    """The image as 8-bit L, RGB or CMYK with its profile in `info`, and its alpha unless it is opaque."""
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
        # Pillow's own conversion clips values above 255, which turns almost everything white.
        shown = Image.fromarray((np.array(file, dtype=np.uint16) >> 8).astype(np.uint8))
    else:
        shown = file.convert("L") if file.mode == "1" else file
    if shown.mode in ("LA", "RGBA"):
        return shown.convert(shown.mode.removesuffix("A")), shown.getchannel("A")
    if key is None or file.mode == "P":
        return shown, None
    return shown, _all_but(np.array(file if bits == 16 and file.mode == "I;16" else shown), key, bits)


def _all_but(values: Pixels, key: int | tuple[int, int, int], bits: int) -> Image.Image:
    """An alpha channel that is transparent for one colour, given in the PNG's bit depth (PNG 3, 11.3.1.1).

    Pillow keeps only the high bytes of 16-bit colours, so only these are compared.
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
            pass  # a broken profile is ignored, as in image viewers
    return image.convert("RGB")


def _moves_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether the profile is sRGB under any name; the values are then kept exactly."""
    moved = cast("Image.Image", ImageCms.applyTransform(Image.fromarray(_PROBE), transform))
    return bool(np.abs(np.array(moved, dtype=np.int16) - _PROBE).max() <= 1)
