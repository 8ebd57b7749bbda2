"""A parameter costs few files: its declaration, a migration, its consumers and the client.

The product's `.py` files and templates are searched for the name as an identifier, a keyword, an attribute, a
string that is the name or a place in it (`loras/0/name`), or a word of SQL. Docstrings do not count.
All migrations count as one file. `bench` and `tiny` are left out: they call the product, draw with some
parameters, and need no change for a new one.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from catalogue.parameters import PARAMETERS
from settings import ROOT

MAX_FILES = 6
PRODUCT = ("catalogue", "cli", "client", "engine", "local", "migrations", "storage", "tasks", "web")
LAST_DECLARED = [name for name, parameter in PARAMETERS.items() if parameter.type != "object"][-5:]
"""`pipeline_parameters`, the object, is left out: it is not one value but the container of the parameters
that `calotype.toml` declares for a model. What reads a CSV, a form or a call reads each of its entries."""

OTHER_NOUNS = {
    # The arguments of diffusers' own calls, whose names say what a pipeline class is for.
    "engine/pipelines/pipeline_task.py": {"mask_image", "control_image", "strength"},
    # A reason why a step batch was not fuller, which metrics show.
    "engine/policy/policy.py": {"strict"},
}
"""Other things that have the name of a parameter, and where they are."""

NOT_OURS = {"zip", "ConfigDict", "reader"}
"""Calls of the standard library and pydantic that have a keyword `strict` of their own."""


@pytest.mark.parametrize("name", LAST_DECLARED)
def test_a_parameter_is_in_at_most_six_files_of_the_product(name: str) -> None:
    found = {_counted(path) for path in _product_files() if name in _names_in(path)}
    others = {path for path, names in OTHER_NOUNS.items() if name in names}
    assert others <= found, "an exception that is not needed any more"
    assert len(found - others) <= MAX_FILES, sorted(found - others)


def test_every_place_of_a_parameter_is_found() -> None:
    """The search itself: names are found in the declaration, a migration, SQL and a template."""
    assert {"strict", "loras"} <= _names_in(ROOT / "catalogue/parameters.py")
    assert "strength" in _names_in(ROOT / "migrations/versions/0018_input_images_and_loras.py")
    assert "guidance_cutoff" in _names_in(ROOT / "storage/workloads.py")
    assert "job" in _names_in(ROOT / "web/templates/job.html")


def _product_files() -> Iterator[Path]:
    for folder in PRODUCT:
        yield from (ROOT / folder).rglob("*.py")
        yield from (ROOT / folder).rglob("*.html")


def _counted(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    return "migrations" if name.startswith("migrations/") else name


def _names_in(path: Path) -> set[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        return set(re.findall(r"\w+", re.sub(r"\{#.*?#\}", "", text, flags=re.DOTALL)))
    tree = ast.parse(text)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {name for node in ast.walk(tree) if id(node) not in prose for name in _names_of(node)}


def _names_of(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.alias(name=name):
            yield name
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Call(func=function, keywords=keywords):
            called = getattr(function, "id", getattr(function, "attr", ""))
            yield from (word.arg for word in keywords if word.arg and called not in NOT_OURS)
        case ast.Constant(value=str(text)) if re.search(r"\b(SELECT|INSERT|UPDATE|ALTER|CREATE)\b", text):
            yield from re.findall(r"\w+", text)
        case ast.Constant(value=str(text)):
            yield re.split(r"[/.]", text, maxsplit=1)[0]
