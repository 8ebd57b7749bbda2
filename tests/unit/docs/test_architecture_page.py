"""ARCHITECTURE.md draws the states as they are, and names files that exist."""

import re

from settings import ROOT
from storage.states import TERMINAL, TRANSITIONS, State

from .conftest import ReadTable

PAGE = "ARCHITECTURE.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
DRAWING = TEXT.partition("\nstateDiagram-v2\n")[2].partition("\n```")[0]
ARROWS = re.findall(r"^  (\[\*\]|\w+) --> (\[\*\]|\w+)(?:: ([a-z]) (.+))?$", DRAWING, re.MULTILINE)


def test_the_drawn_states_are_the_states() -> None:
    drawn = {name for source, target, *_ in ARROWS for name in (source, target)} - {"[*]"}
    assert drawn == {state.value for state in State}


def test_the_drawn_arrows_are_the_transitions() -> None:
    drawn = {
        (name, source, target)
        for source, target, _, names in ARROWS
        if "[*]" not in (source, target)
        for name in names.split(", ")
    }
    performed = {
        (transition.name, transition.sources.value, target.value)
        for transition in TRANSITIONS
        for target in transition.targets
    }
    assert drawn == performed


def test_the_drawn_ends_are_the_final_states() -> None:
    assert {source for source, target, *_ in ARROWS if target == "[*]"} == {state.value for state in TERMINAL}


def test_every_arrow_has_a_letter_and_a_sentence(read_table: ReadTable) -> None:
    letters = [letter for *_, letter, _ in ARROWS if letter]
    rows = {row[0]: row[1] for row in read_table(PAGE, "## The state machine")}
    assert len(set(letters)) == len(letters)
    assert list(rows) == sorted(letters)
    for *_, letter, names in ARROWS:
        if "," in names:  # an arrow of several transitions explains each of them
            explained = re.findall(r"\*\*(\w+)\*\*", rows[letter])
            assert not explained or explained == names.split(", "), letter


def test_every_path_of_the_code_map_exists(read_table: ReadTable) -> None:
    paths = [path for row in read_table(PAGE, "## Code map") for path in re.findall(r"`([^`]+)`", row[0])]
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_file_and_function_of_the_walk_exists() -> None:
    named = re.findall(r"`([a-z_]+/[a-z_/]+\.py)(?:: (\w+))?`", TEXT)
    assert named
    for path, function in named:
        source = ROOT / path
        assert source.exists(), path
        if function:
            assert re.search(rf"def {function}\(", source.read_text(encoding="utf-8")), (path, function)
