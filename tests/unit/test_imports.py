"""The import rules that import-linter cannot read: single-file roots, and what an import must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from settings import ROOT

PACKAGES = (
    "bench",
    "catalogue",
    "client",
    "web",
    "tasks",
    "engine",
    "storage",
    "local",
    "migrations",
    "tiny",
)
COMPOSITION_ROOTS = {
    "web/app.py",
    "web/serve.py",
    "tasks/app.py",
    "tasks/worker.py",
    "tasks/webhooks/worker.py",
    "tasks/sweep.py",
    "migrations/env.py",
}


def imports_at_run_time(path: Path) -> set[str]:
    """The top-level names of what a file imports, but for types alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_only_composition_roots_read_the_settings() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "settings" in imports_at_run_time(path)
    }
    assert {reader for reader in readers if not reader.startswith("local/")} <= COMPOSITION_ROOTS


def test_settings_and_catalogue_know_nothing_else_of_ours() -> None:
    others = {*PACKAGES, "cli", "torch", "flask", "celery"} - {"catalogue"}
    assert not imports_at_run_time(ROOT / "settings.py") & others
    for path in (ROOT / "catalogue").glob("*.py"):
        assert not imports_at_run_time(path) & {*others, "settings"}


def test_only_settings_and_logs_stand_beside_the_packages() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == {"settings.py", "logs.py"}


def test_nothing_imports_the_command_line() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert not {name for name in imports_at_run_time(path) if name.startswith("cli")} - {"client"}, (
                path
            )


@pytest.mark.parametrize(
    "module",
    [
        "web.app",
        "tasks.app",
        "tasks.dispatch",
        "tasks.sweeper",
        "tasks.webhooks.worker",
        "engine.policy.policy",
        "cli",
        "local.up",
        "local.doctor",
    ],
)
def test_importing_it_leaves_torch_out(module: str) -> None:
    check = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
