"""README.md names commands, variables and pictures that exist, and one name each for address and key."""

import ast
import re
import shlex
from pathlib import Path

from client.calotype import Client
from settings import ROOT

from .deployment_checks import check_command
from .deployment_files import Command

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
MAX_IMAGE_BYTES = 600_000


def test_the_first_sentence_says_what_it_is() -> None:
    first = README.split("\n\n")[1]
    assert first.startswith(
        "calotype is a self-hosted text-to-image API with a durable job queue and continuous batching."
    )


def test_the_pictures_at_the_top_exist_and_are_small() -> None:
    above = README.partition("## Two commands")[0]
    names = re.findall(r"!\[[^\]]+\]\((docs/images/[^)]+)\)", above)
    assert len(names) == 2
    assert sum((ROOT / name).stat().st_size for name in names) < MAX_IMAGE_BYTES


def test_address_and_key_have_one_name_each_in_every_page(pages: list[Path]) -> None:
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"\$\{?(URL|KEY|API_KEY|TOKEN)\b|^export (URL|KEY)=", text, re.MULTILINE), page
    assert 'eval "$(.venv/bin/calotype env)"' in README


def test_every_command_of_ours_in_the_readme_exists() -> None:
    lines = re.sub(r"\\\n\s*", "", SHELL).splitlines()
    commands = [words for line in lines if (words := shlex.split(line, comments=True))]
    ours = [words for words in commands if words[0] == ".venv/bin/calotype"]
    inline = [shlex.split(text) for text in re.findall(r"`(\.venv/bin/calotype [^`]+)`", README)]
    assert len(ours) >= 2
    for words in [*ours, *inline, [".venv/bin/calotype", "env"]]:
        assert list(check_command(Command("README.md", words))) == []


def test_the_python_of_the_readme_calls_methods_that_exist() -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert called
    assert all(callable(getattr(Client, name)) for name in called)


def test_the_licence_is_the_same_in_both_places() -> None:
    text = (ROOT / "LICENSE").read_bytes()
    assert text == (ROOT / "client" / "LICENSE").read_bytes()
    assert b"Apache License" in text


def test_security_says_how_to_report_and_gives_no_address_of_a_person() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for part in ("## Reporting a vulnerability", "## Supported versions", "## What is in scope"):
        assert part in text
    assert "@" not in text
