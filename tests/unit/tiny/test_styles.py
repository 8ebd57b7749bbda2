"""Styles: each is drawn where the scene is, and is detected from pixels alone."""

import random

import numpy as np
import pytest
from PIL import Image

from tiny.judge import obeys
from tiny.scenes import SHAPES, Scene, Thing, draw_scene, render
from tiny.styles import STYLES, fill_outlines, has_inside, in_ink, outline_share, render_ink, render_outline


def scenes_with_insides(count: int, seed: int, *, pairs: float) -> list[Scene]:
    rng = random.Random(seed)
    found: list[Scene] = []
    while len(found) < count:
        scene = draw_scene(rng, pairs=pairs)
        if all(has_inside(thing) for thing in scene.things):
            found.append(scene)
    return found


@pytest.mark.parametrize("side", [128, 192])
@pytest.mark.parametrize("pairs", [0.0, 1.0])
def test_outlines_and_filled_things_are_told_apart_in_every_scene(side: int, pairs: float) -> None:
    for scene in scenes_with_insides(40, seed=1, pairs=pairs):
        outlined = render_outline(scene, side, random.Random(2))
        filled = render(scene, side, random.Random(2))
        assert outline_share(outlined, scene) >= 0.8, scene.caption()
        assert outline_share(filled, scene) <= 0.05, scene.caption()


def test_an_outline_lies_where_the_plain_scene_does_and_is_its_rim() -> None:
    for scene in scenes_with_insides(20, seed=3, pairs=0.5):
        outlined = np.asarray(render_outline(scene, 128, random.Random(4)))
        plain = np.asarray(render(scene, 128, random.Random(4)))
        ground = plain[0, 0]
        assert not (outlined[(plain == ground).all(2)] != ground).any()
        assert not np.array_equal(outlined, plain)


def test_a_ring_is_drawn_alike_and_no_share_is_told_of_it() -> None:
    scene = Scene("white", Thing("ring", "red"))
    plain, outlined = (draw(scene, 128, random.Random(5)) for draw in (render, render_outline))
    assert np.array_equal(np.asarray(plain), np.asarray(outlined))
    with pytest.raises(ValueError, match="a red ring on a white background"):
        outline_share(plain, scene)


def test_of_a_ring_and_another_thing_only_the_other_is_looked_at() -> None:
    scene = Scene("white", Thing("ring", "red"), "above", Thing("square", "blue"))
    assert outline_share(render_outline(scene, 128, random.Random(6)), scene) == 1
    assert outline_share(render(scene, 128, random.Random(6)), scene) == 0


def test_what_is_not_there_is_not_an_outline() -> None:
    scene = Scene("white", Thing("square", "red"))
    assert outline_share(Image.new("RGB", (128, 128), "white"), scene) == 0


@pytest.mark.parametrize("side", [128, 192])
def test_the_judge_names_outlined_things_once_they_are_filled(side: int) -> None:
    scenes = scenes_with_insides(40, seed=7, pairs=0.5)
    images = [render_outline(scene, side, random.Random(8)) for scene in scenes]
    right = [obeys(fill_outlines(image), scene).all for image, scene in zip(images, scenes, strict=True)]
    assert sum(right) / len(scenes) >= 0.95


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "ring"])
def test_filling_changes_nothing_of_a_filled_thing(shape: str) -> None:
    image = render(Scene("gray", Thing(shape, "green", "large")), 128, random.Random(9))
    assert np.array_equal(np.asarray(fill_outlines(image)), np.asarray(image))


def test_ink_is_the_scene_in_black_on_white() -> None:
    rng = random.Random(10)
    for scene in [draw_scene(rng, pairs=0.5) for _ in range(20)]:
        inked = render_ink(scene, 128, random.Random(11))
        assert STYLES["ink"].shows(inked, scene)
        assert obeys(inked, in_ink(scene)).all
        if scene != in_ink(scene):
            assert not STYLES["ink"].shows(render(scene, 128, random.Random(11)), scene)


def test_every_style_is_drawn_at_the_side_that_is_asked_for() -> None:
    scene = Scene("white", Thing("heart", "red"))
    assert {style.render(scene, 192, random.Random(12)).size for style in STYLES.values()} == {(192, 192)}


@pytest.mark.parametrize("name", list(STYLES))
def test_a_style_shows_in_its_own_images_and_in_no_plain_ones(name: str) -> None:
    style, rng = STYLES[name], random.Random(13)
    scenes = [scene for scene in (draw_scene(rng, pairs=0.5) for _ in range(40)) if style.can_show(scene)]
    own = [style.render(scene, 128, rng) for scene in scenes]
    plain = [render(scene, 128, rng) for scene in scenes]
    assert all(style.shows(image, scene) for image, scene in zip(own, scenes, strict=True))
    assert not any(style.shows(image, scene) for image, scene in zip(plain, scenes, strict=True))
    right = [style.judge(image, scene).all for image, scene in zip(own, scenes, strict=True)]
    assert sum(right) / len(right) >= 0.95
