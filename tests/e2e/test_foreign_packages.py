"""S27: a distribution that ships a top-level `models` or `settings` never takes the place of ours."""

import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from settings import ROOT

NAMES = sorted(
    {path.stem for path in ROOT.glob("*.py")}
    | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    | {"calotype"}
)


def put_foreign_packages(folder: Path) -> None:
    """A package of each of our names, which says whose it is when it is imported."""
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise SystemExit('foreign: {name} in {folder}')\n")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with all that we need, in whose site-packages the foreign ones come first."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    found = folder / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    put_foreign_packages(site)
    (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return found


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A current folder that holds packages of the same names too."""
    folder = tmp_path_factory.mktemp("elsewhere")
    put_foreign_packages(folder)
    return folder


@pytest.fixture(scope="module")
def command(python: Path) -> Path:
    """What `make install` would write for that interpreter."""
    text = subprocess.run(
        [python, ROOT / "deploy" / "command.py"], capture_output=True, text=True, check=True
    ).stdout
    path = python.with_name("calotype")
    path.write_text(text)
    path.chmod(0o755)
    return path


def run(*words: str | Path, cwd: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    # Other tests name services in this process' environment: with them a sweeper would run for ever.
    ours = ("PYTHONPATH", "CALOTYPE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        words,
        cwd=cwd,
        env=environment | settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_S27_the_foreign_packages_are_there_and_would_be_imported(python: Path, tmp_path: Path) -> None:
    for name in NAMES:
        answer = run(python, "-c", f"import {name}", cwd=tmp_path)
        assert answer.stderr.startswith(f"foreign: {name}"), answer.stderr


@pytest.mark.parametrize(
    "words", [("--version",), ("config", "show"), ("openapi",), ("worker", "--help"), ("doctor", "--help")]
)
def test_S27_the_command_and_the_module_run_this_tree(
    command: Path, python: Path, elsewhere: Path, words: tuple[str, ...]
) -> None:
    by_command = run(command, *words, cwd=elsewhere)
    by_module = run(python, "-m", "cli", *words, cwd=ROOT)
    assert by_command.returncode == by_module.returncode == 0, by_command.stderr + by_module.stderr
    assert by_command.stdout == by_module.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "alembic", "heads"),
        ("-m", "celery", "-A", "tasks.flower:celery", "flower", "--help"),
        ("-m", "cli", "sweep"),
        ("-m", "cli", "worker", "--device", "none"),
        ("-m", "cli", "worker", "--device", "cpu:0"),
        ("-m", "cli", "api"),
    ],
    ids=" ".join,
)
def test_S27_every_program_of_the_procfile_runs_this_tree(python: Path, words: tuple[str, ...]) -> None:
    answer = run(python, *words, cwd=ROOT)
    assert "foreign" not in answer.stdout + answer.stderr
    # Without an environment most of them say what they lack, after they have imported all of ours.
    assert answer.returncode == 0 or " is not set" in answer.stderr, answer.stderr


@pytest.fixture
def running(
    command: Path,
    elsewhere: Path,
    tmp_path: Path,
    kept_self_tests: dict[str, str],
    one_worker: dict[str, str],
) -> Iterator[Path]:
    """`calotype up` of that environment, started from the folder of foreign packages; its data folder."""
    data = tmp_path / "data"
    settings = kept_self_tests | one_worker
    started = run(command, "up", "--detach", "--data-dir", data, cwd=elsewhere, **settings)
    assert started.returncode == 0, started.stdout + started.stderr
    yield data
    run(command, "down", "--data-dir", data, cwd=elsewhere)
    shutil.rmtree(data)


@pytest.mark.timeout(600)
def test_S27_a_whole_system_beside_foreign_packages_draws(
    running: Path, command: Path, elsewhere: Path, tmp_path: Path
) -> None:
    image = tmp_path / "heart.png"
    words = ("submit", "a red heart", "--steps", "2", "-o", image, "--data-dir", running)
    answer = run(command, *words, cwd=elsewhere)
    assert answer.returncode == 0, answer.stderr
    assert image.read_bytes().startswith(b"\x89PNG")
    logs = "\n".join(path.read_text(errors="replace") for path in (running / "logs").iterdir())
    assert "foreign:" not in logs
