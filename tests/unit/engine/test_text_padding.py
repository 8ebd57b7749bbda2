"""Padded texts: how texts and masks are padded, when they are not, and what the self-test finds."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.exchange import Exchange
from engine.pipelines.parked_call import ParkedCall, SharedTensors
from engine.pipelines.pipeline_call import PipelineCall
from engine.pipelines.pipeline_model import Abilities
from engine.pipelines.text_padding import TextPadding, TextPlace
from engine.self_test.padding_finder import LENGTHS, find_text_padding
from engine.self_test.time_budget import TimeBudget

WIDTH = 8
TEXT = TextPlace("transformer", "text", 1, 0, "zeros")
MASK = TextPlace("transformer", "mask", 1, 0, "mask")
PADDING = TextPadding((TEXT, MASK), (4, 8))


def arguments(length: int, **others: Any) -> dict[str, Any]:
    """Arguments of a transformer for a text of that many tokens, without padding."""
    text = torch.randn(1, length, WIDTH, generator=torch.Generator().manual_seed(length))
    mask = torch.ones(1, length, dtype=torch.int64)
    return {"x": torch.zeros(1, 4), "text": text, "mask": mask, **others}


def padded(padding: TextPadding, given: dict[str, Any]) -> dict[str, Any]:
    return dict(padding.of_call().padded("transformer", given))


def signature(given: dict[str, Any]) -> Any:
    return ParkedCall("transformer", given, SharedTensors()).signature


def test_texts_and_their_masks_are_padded_with_zeros_to_the_next_length() -> None:
    given = arguments(3)
    made = padded(PADDING, given)
    assert torch.equal(made["text"][:, :3], given["text"])
    assert made["text"].shape == (1, 4, WIDTH)
    assert not made["text"][:, 3:].any()
    assert made["mask"].tolist() == [[1, 1, 1, 0]]
    assert made["x"] is given["x"]


def test_texts_of_different_lengths_share_a_signature_once_they_are_padded() -> None:
    assert signature(arguments(5)) != signature(arguments(7))
    assert signature(padded(PADDING, arguments(5))) == signature(padded(PADDING, arguments(7)))
    assert signature(padded(PADDING, arguments(4))) != signature(padded(PADDING, arguments(5)))


def test_a_missing_mask_is_added_even_to_a_text_that_needs_no_padding() -> None:
    left_out = TextPlace("transformer", "mask", 1, 0, "missing mask")
    padding = TextPadding((TEXT, left_out), (4,))
    short, whole = (padded(padding, arguments(length, mask=None)) for length in (2, 4))
    assert short["mask"].tolist() == [[True, True, False, False]]
    assert whole["mask"].tolist() == [[True, True, True, True]]
    assert signature(short) == signature(whole)


def test_a_mask_of_text_and_image_is_padded_between_them() -> None:
    joint = TextPlace("transformer", "kwargs/attention_mask", 3, 2, "mask")
    given = arguments(3, kwargs={"attention_mask": torch.ones(1, 1, 1, 5, dtype=torch.bool), "scale": 1.0})
    made = padded(TextPadding((TEXT, joint), (4,)), given)
    assert made["kwargs"]["attention_mask"].flatten().tolist() == [True, True, True, False, True, True]
    assert made["kwargs"]["scale"] == 1.0


def test_positions_are_continued_in_the_padding() -> None:
    ids = TextPlace("transformer", "txt_ids", 0, 0, "continued")
    made = padded(
        TextPadding((TEXT, ids), (5,)), arguments(3, txt_ids=torch.tensor([[0, 4], [0, 5], [0, 6]]))
    )
    assert made["txt_ids"].tolist() == [[0, 4], [0, 5], [0, 6], [0, 7], [0, 8]]


@pytest.mark.parametrize(
    "given",
    [
        arguments(9),  # longer than all lengths
        arguments(3, mask=torch.ones(1, 4)),  # the mask of something else
        arguments(3, mask=None),
        arguments(3, text=None),
        {"x": torch.zeros(1, 4)},
    ],
)
def test_arguments_of_another_form_than_at_the_test_are_not_changed(given: dict[str, Any]) -> None:
    made = padded(PADDING, given)
    assert made.keys() == given.keys()
    assert all(made[name] is value for name, value in given.items())


def test_arguments_that_are_the_same_at_the_next_step_are_padded_once() -> None:
    call, given = PADDING.of_call(), arguments(3)
    first, second = (call.padded("transformer", {**given, "x": torch.zeros(1, 4)}) for _ in range(2))
    assert second["text"] is first["text"]
    assert call.padded("transformer", arguments(3))["text"] is not first["text"]


def test_a_stored_self_test_contains_the_padding() -> None:
    found = Abilities(False, 2, True, False, takes_float_timesteps=True, text_padding=PADDING)
    assert Abilities.of_plain(json.loads(json.dumps(asdict(found)))) == found


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": []},
        {"lengths": [8, 4]},
        {"lengths": ["4"]},
        {"places": []},
        {"places": [{}]},
        {"places": 3},
    ]
    + [{"places": [asdict(TEXT) | one]} for one in ({"dimension": -1}, {"fill": "ones"}, {"module": None})],
)
def test_a_padding_that_was_changed_on_disk_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a padding"):
        TextPadding.of_plain({**PADDING.plain(), **change})


class Attends(nn.Module):
    """A denoiser whose image latents attend to a text; it can ignore `mask` or limit the text."""

    def __init__(self, *, reads_mask: bool = True, max_length: int = 4096) -> None:
        super().__init__()
        self.reads_mask, self.max_length = reads_mask, max_length
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        if text.shape[1] > self.max_length:
            raise ValueError("the text is longer than the positions that were learned")
        weights = torch.zeros(text.shape[:2]) if mask is None or not self.reads_mask else (mask - 1.0) * 1e9
        return x + (torch.softmax(weights, dim=1)[..., None] * text).sum(1)


class Draws:
    """A pipeline of one step with one text token for each letter of the prompt."""

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer, self.scheduler = transformer, SimpleNamespace(step=lambda x: x, timesteps=[1])
        self.components = {"transformer": transformer}

    def set_progress_bar_config(self, **_: Any) -> None:
        """Like the calls of diffusers' pipelines."""

    def __call__(self, prompt: str, has_mask: bool = True) -> Any:
        given = arguments(len(prompt), mask=torch.ones(1, len(prompt)) if has_mask else None)
        given["x"] = torch.zeros(1, WIDTH)
        return SimpleNamespace(images=[self.scheduler.step(self.transformer(**given))])


def found(
    transformer: nn.Module, is_unchanged: Callable[[], bool] = lambda: True, seconds: float = 600.0
) -> TextPadding | None:
    exchange = Exchange(Draws(transformer))
    begin: list[Callable[[], PipelineCall]] = [
        partial(exchange.begin, PipelineScheduler(), prompt=prompt) for prompt in ("heart", "a red heart")
    ]
    padding = find_text_padding(exchange, begin, is_unchanged, TimeBudget(seconds))
    assert exchange.text_padding is None, "the caller sets it"
    return padding


class PipelineScheduler:
    """One step."""

    num_inference_steps: int | None = None
    timesteps = (1,)

    def step(self, x: Tensor) -> Tensor:
        return x


def test_texts_are_padded_if_the_mask_hides_the_padding() -> None:
    places = (TextPlace("transformer", "text", 1, 0, "zeros"), TextPlace("transformer", "mask", 1, 0, "mask"))
    assert found(Attends()) == TextPadding(places, LENGTHS)


def test_texts_are_not_padded_if_the_model_ignores_its_mask() -> None:
    assert found(Attends(reads_mask=False)) is None


def test_texts_are_not_padded_if_images_change_although_single_passes_do_not() -> None:
    assert found(Attends(), lambda: False) is None


def test_texts_are_padded_only_to_lengths_that_the_model_accepts() -> None:
    padding = found(Attends(max_length=200))
    assert padding is not None
    assert padding.lengths == tuple(length for length in LENGTHS if length <= 200)


def test_texts_are_not_padded_without_a_time_budget() -> None:
    assert found(Attends(), seconds=0.0) is None
