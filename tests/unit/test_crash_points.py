"""Crash points do nothing in production: nothing arms them, and each is reached by the code that it names."""

import ast
from pathlib import Path

from catalogue.crash_points import CRASH_POINTS, reach
from settings import ROOT

WINGS = ("catalogue", "cli", "client", "engine", "local", "storage", "tasks", "tiny", "web")


def calls() -> dict[str, list[tuple[Path, str]]]:
    """Calls of `reach` and `arm` in production code, with the file and the first argument."""
    found: dict[str, list[tuple[Path, str]]] = {"reach": [], "arm": []}
    for wing in WINGS:
        for path in (ROOT / wing).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in found:
                    first = node.args[0] if node.args else None
                    argument = first.value if isinstance(first, ast.Constant) else ""
                    found[node.func.id].append((path, str(argument)))
    return found


def test_production_code_arms_nothing_and_reaches_each_point_once() -> None:
    found = calls()
    assert not found["arm"]
    assert sorted(point for _, point in found["reach"]) == sorted(CRASH_POINTS)


def test_a_point_of_a_process_that_is_not_armed_does_nothing() -> None:
    for point in CRASH_POINTS:
        reach(point)
