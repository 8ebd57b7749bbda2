"""The styles of the tiny model's LoRAs: how a scene is drawn in each, and how each is detected in pixels.

`outline` draws a thing as a line around its inside; `ink` draws every scene in black on white. Places, sizes
and jitter are those of `scenes.render`. This module knows nothing of tensors or training.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from tiny.judge import FOREGROUND_DISTANCE, Verdict, obeys
from tiny.scenes import (
    BACKGROUND_COLOURS,
    OBJECT_COLOURS,
    SUPERSAMPLING,
    Scene,
    Thing,
    arrangement,
    render,
    shape_mask,
)

LINE_WIDTH: Final = 0.22
"""The width of an outline as a fraction of the thing's radius: about the least that the VAE can draw at 128
pixels."""
LEAST_DEPTH: Final = 0.7
"""The least depth of pixels that count as a thing's inside; the deepest pixel of a shape has depth 1. In
every shape this is deeper than the line is wide."""
LEAST_SHARE: Final = 0.5
"""An image is outlined if more than this share of the insides has the background's colour."""
JITTER: Final = 0.05
"""How far a thing may exceed its place and radius, as a fraction of the side."""


def render_outline(scene: Scene, side: int, rng: random.Random) -> Image.Image:
    """The scene as `scenes.render` draws it from the same `rng`, with the background inside its things.

    A ring stays as it is: its wall is hardly wider than two lines.
    """
    canvas_side = side * SUPERSAMPLING
    canvas = Image.new("RGB", (canvas_side, canvas_side), BACKGROUND_COLOURS[scene.background])
    for thing, (x, y), radius in arrangement(scene):
        radius *= rng.uniform(0.92, 1.08)
        x, y = (min(max(c + rng.uniform(-0.02, 0.02), radius), 1 - radius) for c in (x, y))
        mask = shape_mask(thing.shape, canvas_side, x, y, radius)
        if has_inside(thing):
            depth = _depth(np.asarray(mask) > 127)
            line = (depth > 0) & (depth <= LINE_WIDTH * radius * canvas_side)
            mask = Image.fromarray(line.astype(np.uint8) * 255)
        canvas.paste(OBJECT_COLOURS[thing.colour], mask=mask)
    return canvas.resize((side, side), Image.Resampling.BOX)


def render_ink(scene: Scene, side: int, rng: random.Random) -> Image.Image:
    """Draw the scene in black on white, whatever colours its caption names."""
    return render(in_ink(scene), side, rng)


def has_inside(thing: Thing) -> bool:
    """Whether an outline of this thing looks different from the thing; that of a ring does not."""
    return thing.shape != "ring"


def in_ink(scene: Scene) -> Scene:
    """The scene with black things on white, for the judge to compare with."""
    second = None if scene.second is None else replace(scene.second, colour="black")
    return replace(scene, background="white", first=replace(scene.first, colour="black"), second=second)


def outline_share(image: Image.Image, scene: Scene) -> float:
    """The share of the things' insides that has the background's colour: 0 if filled, 1 if outlined.

    A thing is looked for where the caption puts it. Its inside is that of its shape, scaled to what was
    found; a missing thing counts as filled. Raises `ValueError` for a scene of rings only.
    """
    shares = []
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    for thing, centre, radius in arrangement(scene):
        if has_inside(thing):
            shares.append(_emptiness(pixels, thing, centre, radius))
    if not shares:
        raise ValueError(f"{scene.caption()!r} has only rings, which look the same with and without outlines")
    return sum(shares) / len(shares)


def fill_outlines(image: Image.Image) -> Image.Image:
    """Fill each closed line with its colour, so that the judge can recognize the shape.

    This also fills the hole of a ring.
    """
    pixels = np.array(image.convert("RGB"))
    lines = _foreground(pixels.astype(np.float32))
    labels, count = ndimage.label(lines, structure=np.ones((3, 3)))
    for number in range(1, count + 1):
        line = labels == number
        inside = ndimage.binary_fill_holes(line) & ~line
        pixels[inside] = np.median(pixels[line], axis=0).astype(np.uint8)
    return Image.fromarray(pixels)


def _emptiness(
    pixels: NDArray[np.float32], thing: Thing, centre: tuple[float, float], radius: float
) -> float:
    reach, side = radius + JITTER, len(pixels)
    x, y = (min(max(c, radius), 1 - radius) for c in centre)  # `render` moves large things inside the image
    left, top = (max(0, round((c - reach) * side)) for c in (x, y))
    right, bottom = (min(side, round((c + reach) * side)) for c in (x, y))
    window = pixels[top:bottom, left:right]
    found = ndimage.find_objects(_foreground(pixels)[top:bottom, left:right].astype(np.int32))
    if not found:
        return 0.0
    inside = window[found[0]][_inside(thing.shape, found[0])]
    to_ground = np.linalg.norm(inside - _ground(pixels), axis=1)
    to_thing = np.linalg.norm(inside - np.array(OBJECT_COLOURS[thing.colour]), axis=1)
    return float((to_ground < to_thing).mean())


def _inside(shape: str, extent: tuple[slice, ...]) -> NDArray[np.bool_]:
    """The deepest pixels of the shape, scaled to `extent`."""
    height, width = (one.stop - one.start for one in extent)
    mask = np.asarray(shape_mask(shape, 192, 0.5, 0.5, 0.4)) > 127
    cut = Image.fromarray(mask[ndimage.find_objects(mask.astype(np.int32))[0]])
    depth = _depth(np.asarray(cut.resize((width, height), Image.Resampling.BILINEAR)))
    deep: NDArray[np.bool_] = depth >= LEAST_DEPTH * depth.max()
    return deep


def _depth(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The distance of each pixel of the mask from the nearest pixel outside it; the border is outside."""
    return np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]


def _foreground(pixels: NDArray[np.float32]) -> NDArray[np.bool_]:
    far: NDArray[np.bool_] = np.linalg.norm(pixels - _ground(pixels), axis=2) > FOREGROUND_DISTANCE
    return far


def _ground(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The background's colour, computed as in the judge."""
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return np.asarray(np.median(edge, axis=0), dtype=np.float32)


def _is_outlined(image: Image.Image, scene: Scene) -> bool:
    return outline_share(image, scene) > LEAST_SHARE


def _judge_outlined(image: Image.Image, scene: Scene) -> Verdict:
    return obeys(fill_outlines(image), scene)


def _has_insides(scene: Scene) -> bool:
    return all(has_inside(thing) for thing in scene.things)


def _is_inked(image: Image.Image, scene: Scene) -> bool:
    verdict = obeys(image, in_ink(scene))
    return verdict.background and verdict.colour


def _judge_inked(image: Image.Image, scene: Scene) -> Verdict:
    return obeys(image, in_ink(scene))


def _is_not_ink_itself(scene: Scene) -> bool:
    return scene != in_ink(scene)


@dataclass(frozen=True)
class Style:
    """A style: its renderer, and the functions that detect it in an image."""

    render: Callable[[Scene, int, random.Random], Image.Image]
    can_show: Callable[[Scene], bool]
    """Whether every thing of this scene looks different in this style than from `scenes.render`."""
    shows: Callable[[Image.Image, Scene], bool]
    """Whether the image, of a scene that can show the style, is in the style."""
    judge: Callable[[Image.Image, Scene], Verdict]
    """`judge.obeys` on the image with the style removed."""


STYLES: Final = {
    "outline": Style(render_outline, _has_insides, _is_outlined, _judge_outlined),
    "ink": Style(render_ink, _is_not_ink_itself, _is_inked, _judge_inked),
}
