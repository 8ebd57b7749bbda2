"""Reads a scene from an image: its background, its shapes, their colours and their places.

It uses pixels alone. A colour is the nearest one of the palette, and a shape the one that overlaps best when
drawn with the same bounding box. `obeys` compares the result with the caption of a scene. It does not judge
beauty.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from tiny.scenes import BACKGROUND_COLOURS, OBJECT_COLOURS, SHAPES, Colour, Scene, shape_mask

MIN_AREA = 0.004
"""The least area of a thing, as a fraction of the image; smaller blobs are ignored."""
FOREGROUND_DISTANCE = 60
"""The least distance from the background's colour for a pixel to belong to a thing (RGB, Euclidean)."""


@dataclass(frozen=True)
class Seen:
    """A thing found in an image; `x` and `y` are its centre; all numbers are fractions of the image."""

    shape: str
    colour: str
    x: float
    y: float
    area: float


@dataclass(frozen=True)
class Verdict:
    """Which parts of a caption an image shows correctly.

    For a pair, `place` says only that the two things lie along the relation's axis. Their order shows in
    `colour` and `shape`, which are compared in the order that the relation gives.
    """

    background: bool
    colour: bool
    shape: bool
    place: bool

    @property
    def all(self) -> bool:
        """Whether every part is right."""
        return self.background and self.colour and self.shape and self.place


def look(image: Image.Image) -> tuple[str, list[Seen]]:
    """Return the background's name and at most two things, largest first."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(edge, axis=0)
    foreground = np.linalg.norm(pixels - ground, axis=2) > FOREGROUND_DISTANCE
    labels, count = ndimage.label(ndimage.binary_opening(foreground), structure=np.ones((3, 3)))
    blobs = [labels == number for number in range(1, count + 1)]
    blobs = sorted((blob for blob in blobs if blob.mean() > MIN_AREA), key=np.sum, reverse=True)[:2]
    return nearest(ground, BACKGROUND_COLOURS), [_see(pixels, blob) for blob in blobs]


def _see(pixels: NDArray[np.float32], blob: NDArray[np.bool_]) -> Seen:
    inner = ndimage.binary_erosion(blob, iterations=2)
    colour = np.median(pixels[inner if inner.any() else blob], axis=0)
    y, x = ((extent.start + extent.stop) / 2 / blob.shape[0] for extent in _extent(blob))
    return Seen(_best_shape(blob), nearest(colour, OBJECT_COLOURS), x, y, float(blob.mean()))


def _extent(blob: NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = ndimage.find_objects(blob.astype(np.int32))[0]
    return rows, columns


def _best_shape(blob: NDArray[np.bool_]) -> str:
    """The shape whose mask, scaled to the same bounding box, overlaps the blob best."""
    rows, columns = _extent(blob)
    cut = Image.fromarray(blob[rows, columns]).resize((48, 48), Image.Resampling.BILINEAR)
    found = np.asarray(cut, dtype=bool)
    scores = {shape: _overlap(found, template) for shape, template in _templates().items()}
    return max(scores, key=scores.__getitem__)


_TEMPLATES: dict[str, NDArray[np.bool_]] = {}


def _templates() -> dict[str, NDArray[np.bool_]]:
    if not _TEMPLATES:
        for shape in SHAPES:
            mask = np.asarray(shape_mask(shape, 192, 0.5, 0.5, 0.4)) > 127
            rows, columns = _extent(mask)
            small = Image.fromarray(mask[rows, columns]).resize((48, 48), Image.Resampling.BILINEAR)
            _TEMPLATES[shape] = np.asarray(small, dtype=bool)
    return _TEMPLATES


def _overlap(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float((first & second).sum() / max(1, (first | second).sum()))


def nearest(colour: NDArray[Any], palette: dict[str, Colour]) -> str:
    """The name of the palette's nearest colour to an RGB colour."""
    return min(palette, key=lambda name: float(np.linalg.norm(colour - np.array(palette[name]))))


def obeys(image: Image.Image, scene: Scene) -> Verdict:
    """Compare an image with the scene that its caption describes."""
    background, things = look(image)
    if len(things) != len(scene.things):
        return Verdict(background == scene.background, False, False, False)
    things = in_caption_order(things, scene)
    wanted = scene.things
    return Verdict(
        background=background == scene.background,
        colour=all(seen.colour == thing.colour for seen, thing in zip(things, wanted, strict=True)),
        shape=all(seen.shape == thing.shape for seen, thing in zip(things, wanted, strict=True)),
        place=_is_placed(things, scene),
    )


def in_caption_order(things: list[Seen], scene: Scene) -> list[Seen]:
    """Sort a pair by position, so that its things are in the order of the caption."""
    if len(things) < 2:
        return things
    if scene.relation in ("above", "below"):
        return sorted(things, key=lambda seen: seen.y, reverse=scene.relation == "below")
    return sorted(things, key=lambda seen: seen.x, reverse=scene.relation == "right of")


def _is_placed(things: list[Seen], scene: Scene) -> bool:
    if len(things) == 2:
        across = abs(things[0].x - things[1].x) > abs(things[0].y - things[1].y)
        return across == (scene.relation in ("left of", "right of"))
    seen, place = things[0], scene.first.place
    middle = {"x": 0.4 < seen.x < 0.6, "y": 0.4 < seen.y < 0.6}
    return {
        "": middle["x"] and middle["y"],
        "at the top": seen.y < 0.42,
        "at the bottom": seen.y > 0.58,
        "on the left": seen.x < 0.42,
        "on the right": seen.x > 0.58,
    }[place]
