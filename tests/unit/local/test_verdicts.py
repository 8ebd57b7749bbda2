"""The checker's words name what is wrong and nothing else, and a prompt that it cannot read is not judged."""

import random

import numpy as np
import pytest
from PIL import Image

from tiny.contact_sheet import Captioned, draw_contact_sheet
from tiny.judge import look
from tiny.scenes import BACKGROUND_COLOURS, read_caption, render
from tiny.verdicts import judge

ON_GRAY = "on a gray background"


def draw(caption: str) -> Image.Image:
    scene = read_caption(caption)
    assert scene is not None
    return render(scene, 128, random.Random(3))


@pytest.mark.parametrize(
    ("drawn", "wanted", "sentence"),
    [
        (f"a red ring {ON_GRAY}", f"a red ring {ON_GRAY}", "right"),
        (f"a red circle {ON_GRAY}", f"a red ring {ON_GRAY}", "shape: saw circle, wanted ring"),
        (f"a red ring {ON_GRAY}", "a red ring on a pink background", "background: saw gray, wanted pink"),
        (
            f"a blue star on the left {ON_GRAY}",
            f"a green star at the top {ON_GRAY}",
            "colour: saw blue, wanted green; place: saw on the left, wanted at the top",
        ),
        (
            f"a red ring above a blue star {ON_GRAY}",
            f"a red ring below a blue star {ON_GRAY}",
            "place: saw them the other way round, wanted below",
        ),
        (
            f"a red ring above a blue star {ON_GRAY}",
            f"a red ring below a green star {ON_GRAY}",
            "colour: saw blue and red, wanted red and green; shape: saw star and ring, wanted ring and star",
        ),
        (
            f"a red ring above a blue star {ON_GRAY}",
            f"a red ring left of a blue star {ON_GRAY}",
            "place: saw them one above the other, wanted left of",
        ),
        (
            f"a red ring above a blue star {ON_GRAY}",
            f"a blue star left of a red ring {ON_GRAY}",
            "place: saw them one above the other, wanted left of",
        ),
        (
            f"a red ring above a blue star {ON_GRAY}",
            "a blue heart left of a red ring on a pink background",
            "background: saw gray, wanted pink; shape: saw star and ring, wanted heart and ring; "
            "place: saw them one above the other, wanted left of",
        ),
        (
            f"a red ring above a red ring {ON_GRAY}",
            f"a red ring left of a red ring {ON_GRAY}",
            "place: saw them one above the other, wanted left of",
        ),
        (
            f"a red ring above a red ring {ON_GRAY}",
            "a red ring above a red ring on a pink background",
            "background: saw gray, wanted pink",
        ),
        (
            f"a red ring {ON_GRAY}",
            f"a red ring left of a red ring {ON_GRAY}",
            "things: saw 1, wanted 2",
        ),
        (
            f"a red ring {ON_GRAY}",
            "a red ring in the rain",
            "not judged: the prompt is not a caption that the checker knows",
        ),
    ],
)
def test_a_verdict_names_what_is_wrong(drawn: str, wanted: str, sentence: str) -> None:
    verdict = judge(draw(drawn), wanted)
    assert verdict.sentence() == sentence
    assert (verdict.word == "wrong") == bool(verdict.faults)


def test_a_thing_near_its_place_is_not_said_to_be_elsewhere() -> None:
    middle = draw(f"a small red ring {ON_GRAY}")
    _, (seen,) = look(middle)
    shifted = Image.new("RGB", middle.size, BACKGROUND_COLOURS["gray"])
    shifted.paste(middle, (round((0.39 - seen.x) * middle.width), 0))
    assert judge(shifted, f"a small red ring {ON_GRAY}").sentence() == "place: not quite in the middle"
    assert judge(shifted, f"a small red ring on the right {ON_GRAY}").sentence() == (
        "place: saw in the middle, wanted on the right"
    )


def test_the_sheet_shows_every_note_in_its_colour() -> None:
    picture = Image.new("RGB", (64, 64), "white")
    sheet = draw_contact_sheet(
        [Captioned(picture, "a caption", "a note " * 60, "#ff0000"), Captioned(picture, "another")]
    )
    red, green, blue = np.moveaxis(np.asarray(sheet, dtype=int), 2, 0)
    # Letters are smoothed, so that few pixels have the very colour.
    assert ((red > 200) & (green < 120) & (blue < 120)).any()
    assert ((red < 80) & (green < 80) & (blue < 80)).any()
