"""The training data and its judge: the judge sees what the renderer drew."""

import random

import pytest

from tiny.judge import obeys
from tiny.scenes import OBJECT_COLOURS, SHAPES, Scene, Thing, draw_scene, is_held_out, read_caption, render


@pytest.mark.parametrize("side", [128, 192])
@pytest.mark.parametrize("pairs", [0.0, 1.0])
def test_the_judge_agrees_with_the_renderer(side: int, pairs: float) -> None:
    rng = random.Random(5)
    scenes = [draw_scene(rng, pairs=pairs) for _ in range(150)]
    agreed = sum(obeys(render(scene, side, rng), scene).all for scene in scenes)
    assert agreed / len(scenes) >= 0.98


def test_the_judge_does_not_agree_with_another_caption() -> None:
    rng = random.Random(6)
    scenes = [draw_scene(rng, pairs=0.0) for _ in range(300)]
    shuffled = scenes[1:] + scenes[:1]
    agreed = sum(
        verdict.shape and verdict.colour
        for verdict in (
            obeys(render(scene, 128, rng), other) for scene, other in zip(scenes, shuffled, strict=True)
        )
    )
    chance = 1 / len(SHAPES) / len(OBJECT_COLOURS)
    assert agreed / len(scenes) <= chance + 0.03


def test_a_caption_says_the_whole_scene() -> None:
    single = Scene("gray", Thing("star", "orange", "large", "on the left"))
    assert single.caption() == "a large orange star on the left on a gray background"
    pair = Scene("white", Thing("circle", "red"), "above", Thing("square", "blue"))
    assert pair.caption() == "a red circle above a blue square on a white background"


def test_held_out_triples_are_never_drawn_for_training() -> None:
    rng = random.Random(7)
    for _ in range(500):
        scene = draw_scene(rng)
        assert not any(is_held_out(thing, scene.background) for thing in scene.things)


def test_every_drawn_scene_can_be_read_back_from_its_caption() -> None:
    rng = random.Random(8)
    for _ in range(2000):
        scene = draw_scene(rng, pairs=0.5)
        assert read_caption(scene.caption()) == scene
    assert read_caption(" A small  RED star\non a gray background ") == Scene(
        "gray", Thing("star", "red", "small")
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red star",
        "a red star on a white background, in oil",
        "an red star on a white background",
        "a pink star on a white background",
        "a white star on a white background",
        "a small red star above a blue ring on a white background",
        "a red star above a white ring on a white background",
        "a red star on the left above a blue ring on a white background",
        "two red stars on a white background",
    ],
)
def test_what_no_drawn_scene_is_called_is_not_read(text: str) -> None:
    assert read_caption(text) is None
