"""docs/reference/cli.md documents every command, option and exit code of `cli`."""

import re
from typing import Any

import pytest
import typer.main

from cli.__main__ import app
from cli.terminal import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_USAGE
from settings import ROOT
from tasks.consumer_watchdog import EXIT_STALLED
from tasks.heartbeat import EXIT_HUNG

from .conftest import ReadTable

PAGE = "docs/reference/cli.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")


def _commands(command: Any, name: str = "calotype") -> dict[str, Any]:
    children = getattr(command, "commands", None)
    if children is None:
        return {name: command}
    return {k: v for child, found in children.items() for k, v in _commands(found, f"{name} {child}").items()}


COMMANDS = _commands(typer.main.get_command(app))
SECTIONS = dict(re.findall(r"^## `(calotype[^`]*)`\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def _usage(name: str) -> str:
    arguments = [part for part in COMMANDS[name].params if part.param_type_name == "argument"]
    shown = [part.name.upper() if part.required else f"[{part.name.upper()}]" for part in arguments]
    return " ".join([name, *shown])


def test_every_command_is_documented_with_its_arguments_and_nothing_else() -> None:
    assert sorted(SECTIONS) == sorted(map(_usage, COMMANDS))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_of_a_command_are_all_documented_and_exist(name: str) -> None:
    documented = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", SECTIONS[_usage(name)]))
    exist = {
        option
        for part in COMMANDS[name].params
        if part.param_type_name == "option"
        for option in (*part.opts, *part.secondary_opts)
    }
    assert exist - {"--help"} == documented


def test_every_exit_code_is_documented(read_table: ReadTable) -> None:
    documented = {int(row[0]) for row in read_table(PAGE, "## Exit codes")}
    # Read as text: importing these would import torch.
    sources = [
        (ROOT / path).read_text(encoding="utf-8") for path in ("tasks/worker.py", "tasks/process_end.py")
    ]
    worker = re.findall(r"^EXIT_\w+ = (\d+)", "\n".join(sources), re.MULTILINE)
    ours = {EXIT_REFUSED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE}
    assert documented == {0, *ours, EXIT_HUNG, EXIT_STALLED, *map(int, worker)}


def test_the_options_before_the_command_are_documented() -> None:
    exist = {option for part in typer.main.get_command(app).params for option in part.opts}
    before = TEXT.partition("\n## `calotype up`")[0]
    assert exist - {"--help"} <= set(re.findall(r"`(--[a-z-]+)`", before))
