"""The import rules that import-linter cannot read: single-file roots, and what an import must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from settings import ROOT
from tests.unit.docs.deployment_files import Deployment

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
    "bench/eta.py",
    "bench/plane/null.py",
    "web/app.py",
    "web/serve.py",
    "web/serve_processes.py",
    "tasks/app.py",
    "tasks/worker.py",
    "tasks/webhooks/worker.py",
    "tasks/sweeper.py",
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


def test_few_short_files_have_only_one_importer() -> None:
    """A short file with one importer belongs into that importer, unless it is a noun of its own."""
    files = [path for package in (*PACKAGES, "cli") for path in (ROOT / package).rglob("*.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    importers: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for imported in imported_modules(path, name):
            importers.get(imported, set()).add(name)
    found = [
        name
        for name, path in modules.items()
        if len(importers[name] - {name}) == 1 and len(path.read_text().splitlines()) < 60
    ]
    assert len(found) <= 8, found


def imported_modules(path: Path, name: str) -> set[str]:
    """The full names that a file imports: modules, and whatever it takes from them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(name.split(".")[: -node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def test_the_api_image_holds_what_a_plan_imports() -> None:
    """But the plots, which need matplotlib: `calotype plan` does without them."""
    copied = [words for words in Deployment().stage("api", "COPY") if not words[0].startswith("--from")]
    files = [file for words in copied for source in words[:-1] for file in ROOT.glob(source)]
    held = {path for file in files for path in (file, *file.rglob("*.py"))}
    todo, seen = ["cli.plan"], {"bench.plan.charts"}
    while todo:
        name = todo.pop()
        path = ROOT / (name.replace(".", "/") + ".py")
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        assert path in held, name
        todo += imported_modules(path, name)
    assert {"bench.plan.search", "engine.policy.policy"} <= seen


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


@pytest.mark.parametrize("module", ["cli.__main__", "bench.load.runs", "bench.load.summary"])
def test_importing_it_leaves_the_library_for_plots_out(module: str) -> None:
    check = f"import sys, {module}; sys.exit('matplotlib' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr


def test_a_task_that_diffusers_names_after_the_model_imports_no_other_pipelines() -> None:
    """A worker of Stable Diffusion would otherwise import every pipeline of diffusers at its start."""
    check = (
        "import sys, diffusers\n"
        "from engine.loading.sibling_pipelines import class_for\n"
        "tasks = ('image-to-image', 'inpainting')\n"
        "found = [class_for(diffusers.StableDiffusionPipeline, task) for task in tasks]\n"
        "assert [one.__name__ for one in found] == "
        "['StableDiffusionImg2ImgPipeline', 'StableDiffusionInpaintPipeline'], found\n"
        "sys.exit('diffusers.pipelines.auto_pipeline' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
