"""The styles of the tiny model's LoRAs: how a scene is drawn in each, and how each is seen in pixels.

`outline` draws a thing as a line around its inside, `ink` draws every scene in black on white. Places and
sizes are those of `scenes.render`, with the same jitter. This module does not know of tensors or training.
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
"""Of an outline, as a fraction of its thing's radius: about what the VAE can still draw at 128 pixels."""
LEAST_DEPTH: Final = 0.7
"""How deep a pixel lies in its shape to be judged: 1 is the depth of the deepest one. In every shape that is
deeper than the line is wide."""
LEAST_SHARE: Final = 0.5
"""An image is outlined if more of its things' insides has the background's colour than has not."""
JITTER: Final = 0.05
"""How far a thing may reach beyond its place and its radius, as a fraction of the side."""


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
    """The scene in black on white, whatever colours its caption names."""
    return render(in_ink(scene), side, rng)


def has_inside(thing: Thing) -> bool:
    """Whether an outline of this thing looks different from the thing: a ring's does not."""
    return thing.shape != "ring"


def in_ink(scene: Scene) -> Scene:
    """The scene with its colours replaced, which the judge can look for."""
    second = None if scene.second is None else replace(scene.second, colour="black")
    return replace(scene, background="white", first=replace(scene.first, colour="black"), second=second)


def outline_share(image: Image.Image, scene: Scene) -> float:
    """The share of the things' insides that has the background's colour: 0 for filled, 1 for outlined ones.

    A thing is looked for where the caption puts it, and its inside is that of its shape, drawn as large as
    what is there; one that is missing counts as filled. Raises ValueError for a scene of rings alone.
    """
    shares = []
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    for thing, centre, radius in arrangement(scene):
        if has_inside(thing):
            shares.append(_emptiness(pixels, thing, centre, radius))
    if not shares:
        raise ValueError(f"no outline shows in {scene.caption()!r}: a ring is drawn alike in both styles")
    return sum(shares) / len(shares)


def fill_outlines(image: Image.Image) -> Image.Image:
    """The image with each closed line's inside in the line's colour, so that the judge can name its shape.

    It fills the hole of a plain ring as well.
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
    x, y = (min(max(c, radius), 1 - radius) for c in centre)  # large things are moved to fit in
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
    """The deepest pixels of the shape, as large as `extent`."""
    height, width = (one.stop - one.start for one in extent)
    mask = np.asarray(shape_mask(shape, 192, 0.5, 0.5, 0.4)) > 127
    cut = Image.fromarray(mask[ndimage.find_objects(mask.astype(np.int32))[0]])
    depth = _depth(np.asarray(cut.resize((width, height), Image.Resampling.BILINEAR)))
    deep: NDArray[np.bool_] = depth >= LEAST_DEPTH * depth.max()
    return deep


def _depth(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How far each pixel of the mask is from the nearest one that is not of it; the frame is not of it."""
    return np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]


def _foreground(pixels: NDArray[np.float32]) -> NDArray[np.bool_]:
    far: NDArray[np.bool_] = np.linalg.norm(pixels - _ground(pixels), axis=2) > FOREGROUND_DISTANCE
    return far


def _ground(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The background's colour, as the judge sees it."""
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
    """One style: its renderer, and what is seen of it in an image of a scene."""

    render: Callable[[Scene, int, random.Random], Image.Image]
    can_show: Callable[[Scene], bool]
    """Whether the style draws this scene otherwise than `scenes.render` does, in every thing of it."""
    shows: Callable[[Image.Image, Scene], bool]
    """Whether the image is in the style; of a scene that can show it."""
    judge: Callable[[Image.Image, Scene], Verdict]
    """`judge.obeys`, of what the image shows once the style is taken off."""


STYLES: Final = {
    "outline": Style(render_outline, _has_insides, _is_outlined, _judge_outlined),
    "ink": Style(render_ink, _is_not_ink_itself, _is_inked, _judge_inked),
}
