"""Prompts with syntax of other programs are recognized, and similar plain ones are not."""

import time

import pytest

from engine.pipelines.prompt_notation import notation_in


@pytest.mark.parametrize(
    ("prompt", "piece", "means"),
    [
        ("(a red heart:1.3)", "(a red heart:1.3)", "a weight"),
        ("a (red heart: .8 ), star", "(red heart: .8 )", "a weight"),
        ("(year 1990:1.2)", "(year 1990:1.2)", "a weight"),
        ("((a:1.2), b:1.3)", "(a:1.2)", "a weight"),
        ("(masterpiece, (best quality):1.2), a heart", "quality):1.2)", "a weight"),
        ("(a (b):2), a heart", "b):2)", "a weight"),
        ("(a (red) heart:1.3)", "heart:1.3)", "a weight"),
        (r"(a\(b\):1.3)", r"b\):1.3)", "a weight"),
        ("a star, (heart:1.3", "(heart:1.3", "a weight"),
        ("a heart:1.3), a star", "heart:1.3)", "a weight"),
        ("heart::2 star", "heart::2", "a weight"),
        ("a heart ::-0.5, a star", "heart ::-0.5", "a weight"),
        ("((x))", "((x))", "a weight"),
        ("a [x]", "[x]", "a weight"),
        ("[cat:dog:0.5]", "[cat:dog:0.5]", "a weight"),
        ("{{masterpiece}}, a cat", "{{masterpiece}}", "a weight"),
        ("a cat++ on a mat", "cat++", "a weight"),
        ("a (red cat)-- here", ")--", "a weight"),
        ("(a cat)1.3, a dog", ")1.3", "a weight"),
        ("a cat <lora:detail:0.8>", "<lora:detail:0.8>", "a LoRA or network"),
        ("a cat, embedding:bad-hands", "embedding:bad-hands", "an embedding"),
        ("a __color__ cat", "__color__", "a wildcard"),
        ("a {red|blue} cat", "{red|blue}", "a wildcard"),
        ("a cat BREAK a dog", "BREAK", "a keyword"),
        ("a cat AND a dog", "AND", "a keyword"),
        ('("a cat", "a dog").and()', ").and(", "a combination"),
        ("a cat --ar 16:9", "--ar", "a parameter"),
    ],
)
def test_E12_a_notation_is_named_with_what_it_means_elsewhere(prompt: str, piece: str, means: str) -> None:
    assert f'"{piece}" ({means})' in str(notation_in(prompt))


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a cat (small, on a mat)",
        "a clock (at 10:30)",
        "a screen (16:9)",
        "a still (1:1.85), grain",
        "a model car (scale 1:24)",
        "a verse (John 3:16)",
        "a price tag (USD: 5)",
        "note (see: above)",
        "a book on C++ and one on Notepad++",
        "the Disney+ logo",
        "a cat -- red -- on a mat",
        "a well--made chair",
        "A CAT AND A DOG",
        "rock AND roll".lower(),
        r"\(literally:1.3\) and \[so\]",
        "a (big) [] thing",
        "x < 3 and y > 4",
        "snake_case and __init",
        "(",
        "a smile :-) (really)",
        "a clown :0) and a hat",
        "meet me at 12:30)",
        "a wide picture, ratio 1:1.5)",
        "a picture (ratio 1:1.5",
        "a verse (John 3:16",
        "a note (see 1: 2)",
        "the address fe80::1 and ::1",
        "std::vector in C++",
    ],
)
def test_E12_innocent_parentheses_are_left_alone(prompt: str) -> None:
    assert notation_in(prompt) is None


def test_E12_many_pieces_are_counted_and_long_ones_cut() -> None:
    sentence = str(
        notation_in("(a cat:1.1) (a dog:1.2) (a cow:1.3) (a pig:1.4) (a " + "very " * 99 + "big ox:1.5)")
    )
    assert " and 2 more was read as plain text" in sentence
    assert len(sentence) < 300


@pytest.mark.parametrize(
    "piece",
    [
        "(",
        "[",
        "{",
        "((",
        "(a:",
        "(a:1 ",
        "[a",
        "{a|",
        "<lora:",
        "__a",
        ")+",
        ")1",
        "\\(",
        "A ",
        "a ",
        "- ",
        "a:",
        ":1.2",
        "a :1 ",
        "::",
        "a::",
        "):",
    ],
)
def test_E12_a_prompt_takes_time_in_proportion_to_its_length(piece: str) -> None:
    """The fastest of some tries; a pattern that restarts at every character would take 100 times as long."""

    def seconds(num_characters: int) -> float:
        text, taken = (piece * num_characters)[:num_characters], []
        for _ in range(5):
            started_at = time.perf_counter()
            notation_in(text)
            taken.append(time.perf_counter() - started_at)
        return min(taken)

    assert seconds(20_000) < 50 * seconds(2_000) + 0.001
