"""Every pipeline class of diffusers that can be built small draws the same in mixed batches as alone."""

from pathlib import Path

import pytest
import torch

from engine.exchange import Exchange
from settings import ROOT
from tests.pipelines.builds import BUILDS, built
from tests.pipelines.classes import ALONE, image_pipelines, reason_not_tried
from tests.pipelines.families import FAMILIES
from tests.pipelines.members import MOST, Seen, draw_in_batches, draw_one_at_a_time, draw_untouched
from tests.pipelines.requests import arguments

PAGE = ROOT / "docs" / "reference" / "pipelines.md"
SHORT, LONG = range(4), range(10)
CHANCES = (1, 2)
assert FAMILIES, "the family modules fill BUILDS"

# diffusers and transformers warn about changes to their own code.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", sorted(BUILDS))
def test_in_random_batches_each_image_is_that_of_the_untouched_pipeline(
    name: str, page_path: Path | None, seen: dict[str, Seen]
) -> None:
    numbers, chances = (SHORT, CHANCES[:1]) if page_path is None else (LONG, CHANCES)
    if name in ALONE:
        seen[name] = draw_one_at_a_time(name, numbers)
        assert seen[name].is_equal, seen[name]
    else:
        seen[name] = worst([draw_in_batches(name, numbers, chance) for chance in chances])
        if page_path is None and seen[name].calls_a_pass == 1.0:  # too few to be sure that they share a pass
            seen[name] = draw_in_batches(name, LONG, CHANCES[1])
        assert seen[name].is_batched, seen[name]


@pytest.mark.parametrize("name", sorted(BUILDS))
def test_one_at_a_time_each_image_has_the_bytes_of_the_untouched_pipeline(name: str) -> None:
    assert draw_one_at_a_time(name, SHORT[2:]).most == 0.0


@pytest.mark.parametrize("name", sorted(ALONE))
def test_what_is_said_to_run_alone_cannot_share_a_pass(name: str) -> None:
    try:
        members = draw_in_batches(name, SHORT, CHANCES[0])
    except (RuntimeError, ValueError, ZeroDivisionError, AssertionError):
        return  # the pipeline's own code cannot share a pass
    assert not members.is_batched, f"{name} shares passes now: take it from the list of those that run alone"


@pytest.mark.parametrize("name", sorted(BUILDS))
def test_each_small_pipeline_draws_the_same_again_and_another_image_for_another_request(name: str) -> None:
    first, again, other = (draw_untouched(name, number) for number in (0, 0, 1))
    assert (first == again).all()
    assert abs(first - other).max() * 255 > 4 * MOST


def test_every_class_that_draws_images_is_tried_or_says_why_not() -> None:
    names = image_pipelines()
    assert set(BUILDS) <= set(names)
    assert [name for name in names if name not in BUILDS and reason_not_tried(name) is None] == []


def test_the_page_names_every_class() -> None:
    written = PAGE.read_text()
    assert [name for name in image_pipelines() if f"| `{name}` |" not in written] == []


@torch.inference_mode()
def test_a_call_of_a_combined_pipeline_copies_no_weights() -> None:
    pipeline = built("KandinskyCombinedPipeline")
    call = Exchange(pipeline).begin(**arguments("KandinskyCombinedPipeline", 0))
    assert call.parked is not None
    own = vars(call._pipeline)["decoder_pipe"]
    assert own is not pipeline.decoder_pipe
    assert own.unet.conv_in.weight is pipeline.unet.conv_in.weight
    assert own.scheduler is not pipeline.scheduler
    call.end()


def worst(shown: list[Seen]) -> Seen:
    """The worst of several results."""
    return Seen(
        max(one.most for one in shown),
        max(one.mean for one in shown),
        sum(one.calls_a_pass for one in shown) / len(shown),
        shown[0].texts,
    )
