"""ARCHITECTURE.md draws the states as they are, and maps every folder that exists."""

import re
from pathlib import Path

from catalogue.states import TERMINAL, State
from settings import ROOT
from storage.transitions import TRANSITIONS

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


def test_every_row_of_the_code_map_exists_and_every_folder_with_code_has_one(read_table: ReadTable) -> None:
    named = [path for row in read_table(PAGE, "## Code map") for path in re.findall(r"`([^`]+)`", row[0])]
    assert len(set(named)) == len(named)
    assert [path for path in named if not (ROOT / path).exists()] == []
    with_code = {
        f"{path.parent.relative_to(ROOT)}/"
        for top in _top_folders()
        for path in top.rglob("*.py")
        if path.parent.relative_to(ROOT).parts[0] not in ("tests", "client")
    }
    assert with_code | {"tests/", "client/"} <= set(named)
    assert {path.name for path in ROOT.glob("*.py")} <= set(named)


def _top_folders() -> list[Path]:
    return [path for path in ROOT.iterdir() if (path / "__init__.py").exists() or path.name == "deploy"]


def test_every_file_and_function_of_the_path_exists() -> None:
    named = re.findall(r"`([a-z_]+/[a-z_/]+\.py)(?:: (\w+))?`", TEXT)
    assert named
    for path, function in named:
        source = ROOT / path
        assert source.exists(), path
        if function:
            assert re.search(rf"def {function}\(", source.read_text(encoding="utf-8")), (path, function)
