"""The engine logs what failed and where, and never a word of a prompt."""

import logging
from collections.abc import Callable

import pytest

from engine.device_work import DeviceWork
from engine.errors import GenerationImpossible, PromptInvalid

TOKEN = "<my-cat>"


def quote_token() -> None:
    raise PromptInvalid(f"prompt: its token {TOKEN!r} is not among the 8 that the text encoder knows")


def quote_in_a_library() -> None:
    try:
        dict[str, int]()[TOKEN]
    except KeyError as error:
        raise TypeError(f"cannot encode {TOKEN!r}") from error


@pytest.mark.parametrize(
    ("work", "failure", "said"),
    [
        (quote_token, PromptInvalid, ["invalid_prompt: PromptInvalid"]),
        (quote_in_a_library, GenerationImpossible, ["TypeError", "KeyError", "in quote_in_a_library"]),
    ],
)
def test_the_log_says_where_a_generation_failed_without_a_word_of_its_prompt(
    caplog: pytest.LogCaptureFixture, work: Callable[[], None], failure: type[Exception], said: list[str]
) -> None:
    attempt = DeviceWork(free=lambda: None, after_each=lambda: None)
    with caplog.at_level(logging.WARNING):
        outcome = attempt(work)
    assert isinstance(outcome, failure)
    assert TOKEN in str(outcome), "the job's owner reads it in the API"
    assert all(words in caplog.text for words in said)
    assert TOKEN not in caplog.text
