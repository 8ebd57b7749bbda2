"""The checker's verdict on an image of the tiny model and its prompt, in words and as data.

It judges prompts in the caption language that the model was trained on; all others are `NOT_JUDGED`.
`tiny.judge` reads the image.
"""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from tiny.judge import Seen, in_caption_order, look, obeys
from tiny.scenes import PLACES, Scene, read_caption

RIGHT, WRONG, NOT_JUDGED = "right", "wrong", "not judged"
PARTS = ("colour", "shape")


@dataclass(frozen=True)
class Verdict:
    """`RIGHT`, `WRONG` with a list of faults, or `NOT_JUDGED`."""

    word: str
    faults: tuple[str, ...] = ()

    def sentence(self) -> str:
        """The verdict as text for people."""
        if self.word == NOT_JUDGED:
            return "not judged: the prompt is not a caption that the checker knows"
        return "; ".join(self.faults) or RIGHT

    def data(self) -> dict[str, Any]:
        """The verdict as JSON for programs."""
        return {"verdict": self.word, "faults": list(self.faults)}


def judge(picture: Image.Image, prompt: str) -> Verdict:
    """Compare an image with its prompt, part by part."""
    scene = read_caption(prompt)
    if scene is None:
        return Verdict(NOT_JUDGED)
    if obeys(picture, scene).all:
        return Verdict(RIGHT)
    return Verdict(WRONG, tuple(_faults(picture, scene)))


def _faults(picture: Image.Image, scene: Scene) -> list[str]:
    background, things = look(picture)
    found = obeys(picture, scene)
    faults = [] if found.background else [f"background: saw {background}, wanted {scene.background}"]
    if len(things) != len(scene.things):
        return [*faults, f"things: saw {len(things)}, wanted {len(scene.things)}"]
    things = in_caption_order(things, scene)
    if scene.relation:
        swapped = things[::-1]
        if found.place and _as_wanted(things, scene) < 1 == _as_wanted(swapped, scene):
            return [*faults, f"place: saw them the other way round, wanted {scene.relation}"]
        if not found.place:  # positions do not tell which is which: take the better order
            things = max(things, swapped, key=lambda order: _as_wanted(order, scene))
    for part in PARTS:
        saw, wanted = (_listed(part, several) for several in (things, scene.things))
        if saw != wanted:
            faults.append(f"{part}: saw {saw}, wanted {wanted}")
    if not found.place:
        faults.append(_misplaced(things, scene))
    return faults


def _as_wanted(things: list[Seen], scene: Scene) -> float:
    """The share of colours and shapes that match the prompt, in this order of things."""
    right = [
        bool(getattr(seen, part) == getattr(thing, part))
        for seen, thing in zip(things, scene.things, strict=True)
        for part in PARTS
    ]
    return sum(right) / len(right)


def _listed(part: str, things: Any) -> str:
    return " and ".join(getattr(thing, part) for thing in things)


def _misplaced(things: list[Seen], scene: Scene) -> str:
    if scene.relation:
        across = scene.relation in ("above", "below")
        saw = "side by side" if across else "one above the other"
        return f"place: saw them {saw}, wanted {scene.relation}"
    seen = things[0]
    nearest = min(PLACES, key=lambda name: abs(seen.x - PLACES[name][0]) + abs(seen.y - PLACES[name][1]))
    saw, wanted = (name or "in the middle" for name in (nearest, scene.first.place))
    return f"place: saw {saw}, wanted {wanted}" if saw != wanted else f"place: not quite {wanted}"
