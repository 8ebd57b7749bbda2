"""The evaluation: held-out captions, exact chance, correct intervals."""

import pytest

from settings import ROOT
from tiny.judge import Verdict
from tiny.scenes import is_held_out
from tiny.train.card import KINDS, SIDES, STEPS, bar_table, digest
from tiny.train.evaluate import Figure, Score, check_judge, held_out_scenes, is_obeyed


@pytest.mark.parametrize("pairs", [False, True])
def test_every_thing_of_a_measured_caption_is_held_out_and_no_caption_comes_twice(pairs: bool) -> None:
    scenes = held_out_scenes(100, pairs=pairs)
    assert len({scene.caption() for scene in scenes}) == 100
    assert all(is_held_out(thing, scene.background) for scene in scenes for thing in scene.things)
    assert all((scene.second is not None) == pairs for scene in scenes)


def test_a_pair_is_obeyed_only_with_its_relation() -> None:
    [single], [pair] = held_out_scenes(1, pairs=False), held_out_scenes(1, pairs=True)
    misplaced = Verdict(background=True, colour=True, shape=True, place=False)
    assert is_obeyed(misplaced, single)
    assert not is_obeyed(misplaced, pair)
    assert not is_obeyed(Verdict(background=True, colour=False, shape=True, place=True), single)


@pytest.mark.parametrize("kind", ["single", "pair"])
def test_the_judge_agrees_with_the_renderer_and_not_with_other_captions(kind: str) -> None:
    check = check_judge(kind=kind, side=128, captions=120)
    assert check.own.share >= 98
    assert check.shuffled.share <= check.chance + 3
    assert check.chance < (5 if kind == "single" else 1)


def test_the_interval_is_wilsons() -> None:
    low, high = Score(180, 200).interval
    assert (round(low, 1), round(high, 1)) == (85.1, 93.4)
    assert Score(200, 200).interval[1] == pytest.approx(100)


def test_the_card_is_of_the_model_that_ships_and_of_its_judge() -> None:
    page = (ROOT / "docs" / "model-card.md").read_text(encoding="utf-8")
    assert digest(ROOT / "models" / "tiny") in page
    assert "**no**" not in page
    for side in SIDES:
        assert (ROOT / "docs" / "images" / f"tiny-{side}.png").is_file()
        for kind in KINDS:
            assert all(f"| {kind} | {side}² | {steps} |" in page for steps in STEPS)


def test_a_bar_that_is_missed_is_said() -> None:
    half = Score(100, 200)
    figures = [Figure("single", 128, 20, half, half, half, half, obeyed=half)]
    assert "| ≥ 90 % | 50.0 % | **no** |" in bar_table(figures, [])
