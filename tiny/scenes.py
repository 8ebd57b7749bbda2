"""Synthetic scenes: the training data of the tiny model, and the ground truth for its judge.

A `Scene` is one or two coloured shapes on a plain background. `caption` describes it in words, `read_caption`
parses these words, and `render` draws it at any size. This module knows nothing of tensors or training.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

OBJECT_COLOURS: Final[dict[str, Colour]] = {
    "red": (214, 34, 40),
    "orange": (248, 140, 20),
    "yellow": (250, 220, 40),
    "green": (34, 150, 60),
    "blue": (36, 80, 210),
    "purple": (130, 44, 160),
    "black": (16, 16, 18),
    "white": (250, 250, 250),
}
BACKGROUND_COLOURS: Final[dict[str, Colour]] = {
    "white": (250, 250, 250),
    "black": (16, 16, 18),
    "gray": (140, 140, 144),
    "yellow": (250, 220, 40),
    "green": (34, 150, 60),
    "blue": (36, 80, 210),
    "pink": (250, 176, 196),
    "brown": (120, 72, 36),
}
SHAPES: Final = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "crescent")
PLACES: Final[dict[str, tuple[float, float]]] = {
    "": (0.5, 0.5),
    "at the top": (0.5, 0.25),
    "at the bottom": (0.5, 0.75),
    "on the left": (0.25, 0.5),
    "on the right": (0.75, 0.5),
}
SIZES: Final[dict[str, float]] = {"small": 0.125, "": 0.20, "large": 0.30}
RELATIONS: Final[dict[str, tuple[tuple[float, float], tuple[float, float]]]] = {
    "above": ((0.5, 0.27), (0.5, 0.73)),
    "below": ((0.5, 0.73), (0.5, 0.27)),
    "left of": ((0.27, 0.5), (0.73, 0.5)),
    "right of": ((0.73, 0.5), (0.27, 0.5)),
}
PAIR_RADIUS: Final = 0.17
SUPERSAMPLING: Final = 3


@dataclass(frozen=True)
class Thing:
    """One shape of a scene, exactly as the caption describes it."""

    shape: str
    colour: str
    size: str = ""
    place: str = ""

    def words(self) -> str:
        """The noun phrase with its article, such as `a large blue star`."""
        phrase = " ".join(word for word in (self.size, self.colour, self.shape) if word)
        return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


@dataclass(frozen=True)
class Scene:
    """A background with one thing at a place, or with two things and their relation."""

    background: str
    first: Thing
    relation: str = ""
    second: Thing | None = None

    @property
    def things(self) -> tuple[Thing, ...]:
        """The things in the order of the caption."""
        return (self.first,) if self.second is None else (self.first, self.second)

    def caption(self) -> str:
        """The scene in words. Images of scenes with equal captions differ only by jitter."""
        if self.second is None:
            where = f" {self.first.place}" if self.first.place else ""
            return f"{self.first.words()}{where} on a {self.background} background"
        return f"{self.first.words()} {self.relation} {self.second.words()} on a {self.background} background"


def read_caption(text: str) -> Scene | None:
    """Parse a caption; returns None if no visible scene has this caption.

    Case and spacing are ignored; every word must match.
    """
    words = " ".join(text.lower().split())
    found = _CAPTION.fullmatch(words)
    if found is None:
        return None
    said = {name: value or "" for name, value in found.groupdict().items()}
    second = Thing(said["shape2"], said["colour2"]) if said["relation"] else None
    first = Thing(said["shape"], said["colour"], said["size"], said["place"])
    scene = Scene(said["background"], first, said["relation"], second)
    # The pattern also matches texts that no caption has: a wrong article, or a size in a pair.
    is_seen = all(thing.colour != scene.background for thing in scene.things)
    return scene if is_seen and scene.caption() == words and not (second and first.size) else None


def _one_of(name: str, words: Iterable[str]) -> str:
    return f"(?P<{name}>{'|'.join(word for word in words if word)})"


_CAPTION: Final = re.compile(
    rf"an? (?:{_one_of('size', SIZES)} )?{_one_of('colour', OBJECT_COLOURS)} {_one_of('shape', SHAPES)}"
    rf"(?: {_one_of('place', PLACES)}"
    rf"| {_one_of('relation', RELATIONS)}"
    rf" an? {_one_of('colour2', OBJECT_COLOURS)} {_one_of('shape2', SHAPES)})?"
    rf" on a {_one_of('background', BACKGROUND_COLOURS)} background"
)


def is_held_out(thing: Thing, background: str) -> bool:
    """Whether this triple of shape, colour and background is kept out of training (about one in twelve)."""
    code = (
        SHAPES.index(thing.shape) * 7
        + list(OBJECT_COLOURS).index(thing.colour) * 5
        + list(BACKGROUND_COLOURS).index(background) * 3
    )
    return code % 12 == 0


def draw_scene(rng: random.Random, *, pairs: float = 0.4, held_out: bool = False) -> Scene:
    """Return a random scene whose things are all held out, or all not, as `held_out` says."""
    while True:
        background = rng.choice(list(BACKGROUND_COLOURS))
        colours = [name for name in OBJECT_COLOURS if name != background]
        if rng.random() < pairs:
            first_colour, second_colour = rng.choice(colours), rng.choice(colours)
            scene = Scene(
                background,
                Thing(rng.choice(SHAPES), first_colour),
                rng.choice(list(RELATIONS)),
                Thing(rng.choice(SHAPES), second_colour),
            )
        else:
            thing = Thing(
                rng.choice(SHAPES),
                rng.choice(colours),
                rng.choice(["", "", "small", "large"]),
                rng.choice(list(PLACES)),
            )
            scene = Scene(background, thing)
        if all(is_held_out(thing, background) == held_out for thing in scene.things):
            return scene


def render(scene: Scene, side: int, rng: random.Random) -> Image.Image:
    """Draw the scene as a square RGB image of `side` pixels, with a little jitter in place and size."""
    canvas_side = side * SUPERSAMPLING
    canvas = Image.new("RGB", (canvas_side, canvas_side), BACKGROUND_COLOURS[scene.background])
    for thing, (x, y), radius in arrangement(scene):
        radius *= rng.uniform(0.92, 1.08)
        x, y = (min(max(c + rng.uniform(-0.02, 0.02), radius), 1 - radius) for c in (x, y))
        mask = shape_mask(thing.shape, canvas_side, x, y, radius)
        canvas.paste(OBJECT_COLOURS[thing.colour], mask=mask)
    return canvas.resize((side, side), Image.Resampling.BOX)


def arrangement(scene: Scene) -> list[tuple[Thing, tuple[float, float], float]]:
    """Each thing with its centre and radius, before jitter, as fractions of the side."""
    if scene.second is None:
        return [(scene.first, PLACES[scene.first.place], SIZES[scene.first.size])]
    first_at, second_at = RELATIONS[scene.relation]
    return [(scene.first, first_at, PAIR_RADIUS), (scene.second, second_at, PAIR_RADIUS)]


def shape_mask(shape: str, side: int, x: float, y: float, radius: float) -> Image.Image:
    """A mask (mode `L`) of one shape; centre and radius are fractions of `side`."""
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    cx, cy, r = x * side, y * side, radius * side

    def disc(dx: float, dy: float, scale: float, fill: int = 255) -> None:
        ox, oy, q = cx + dx * r, cy + dy * r, scale * r
        pen.ellipse((ox - q, oy - q, ox + q, oy + q), fill=fill)

    def polygon(points: list[tuple[float, float]]) -> None:
        pen.polygon([(cx + px * r, cy + py * r) for px, py in points], fill=255)

    if shape == "circle":
        disc(0, 0, 0.95)
    elif shape == "square":
        polygon([(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)])
    elif shape == "triangle":
        polygon([(0, -0.95), (1.0, 0.85), (-1.0, 0.85)])
    elif shape == "star":
        polygon(STAR)
    elif shape == "heart":
        disc(-0.47, -0.38, 0.5)
        disc(0.47, -0.38, 0.5)
        polygon([(-0.93, -0.18), (0, -0.30), (0.93, -0.18), (0, 0.95)])
    elif shape == "ring":
        disc(0, 0, 1.0)
        disc(0, 0, 0.52, fill=0)
    elif shape == "cross":
        polygon([(-0.32, -1), (0.32, -1), (0.32, 1), (-0.32, 1)])
        polygon([(-1, -0.32), (1, -0.32), (1, 0.32), (-1, 0.32)])
    elif shape == "crescent":
        disc(0, 0, 1.0)
        disc(0.48, 0, 0.82, fill=0)
    else:
        raise ValueError(f"unknown shape {shape!r}: choose one of {', '.join(SHAPES)}")
    return mask


STAR: Final = [
    (0.0, -1.0), (0.27, -0.35), (0.95, -0.31), (0.42, 0.13), (0.59, 0.81),
    (0.0, 0.42), (-0.59, 0.81), (-0.42, 0.13), (-0.95, -0.31), (-0.27, -0.35),
]  # fmt: skip
