"""The promises of the installation: what failed is not taken for done, and the server is no distribution."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from settings import ROOT

command = runpy.run_path(str(ROOT / "deploy" / "command.py"))["command"]
SENTENCE = runpy.run_path(str(ROOT / "deploy" / "refuse_install.py"))["SENTENCE"]


def test_a_failed_pip_fails_the_installation_and_is_tried_again(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements-quantization.lock", "requirements-traces.lock"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "deploy" / "command.py", tmp_path / "deploy")
    (tmp_path / "requirements.lock").write_text("this is no requirement\n")
    for _ in range(2):
        answer = subprocess.run(
            ["make", "install", f"PYTHON={sys.executable}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert answer.returncode != 0
        assert "pip failed" in answer.stdout
        assert not (tmp_path / ".venv" / "installed").exists()


@pytest.mark.parametrize("words", [["wheel", "."], ["install", "."], ["install", "-e", "."]], ids=" ".join)
def test_S27_pip_is_told_in_one_sentence_what_to_do_instead(words: list[str], tmp_path: Path) -> None:
    before = files_of_the_checkout()
    target = ["--wheel-dir", str(tmp_path)] if words[0] == "wheel" else ["--target", str(tmp_path)]
    answer = subprocess.run(
        [sys.executable, "-m", "pip", *words, "--no-deps", "--no-color", *target],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert answer.returncode != 0
    said = [line.strip() for line in (answer.stdout + answer.stderr).splitlines()]
    assert SENTENCE in said
    assert "Traceback" not in answer.stderr
    assert list(tmp_path.iterdir()) == []
    assert files_of_the_checkout() == before


def files_of_the_checkout() -> set[Path]:
    """Without the folders that another pytest process may create meanwhile."""
    return {path for path in ROOT.iterdir() if path.name not in (".hypothesis", ".pytest_cache")}


def test_S27_make_install_writes_the_command_of_this_tree() -> None:
    """Where this interpreter is that of `make install`; another one has no command of ours."""
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip(f"{sys.prefix} is not {ROOT}/.venv")
    written = Path(sys.prefix) / "bin" / "calotype"
    assert written.read_text(encoding="utf-8") == command(Path(sys.executable), ROOT)
    assert len(written.read_text(encoding="utf-8").splitlines()) == 3
    assert os.access(written, os.X_OK)


def test_S27_the_command_runs_a_tree_whose_path_is_hard_to_quote(tmp_path: Path) -> None:
    tree = tmp_path / 'a tree\'s "$HOME" `x`'
    tree.mkdir()
    (tree / "cli.py").write_text("import sys, ours\nprint(ours.NAME, sys.argv[1:])\n")
    (tree / "ours.py").write_text("NAME = 'tree'\n")
    (tmp_path / "ours.py").write_text("NAME = 'current folder'\n")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "ours.py").write_text("NAME = 'PYTHONPATH'\n")
    script = tmp_path / "calotype"
    script.write_text(command(Path(sys.executable), tree))
    for more in ({}, {"PYTHONPATH": str(tmp_path / "path")}, {"PYTHONSAFEPATH": "1"}):
        answer = subprocess.run(
            ["sh", str(script), "a b", "*"],
            cwd=tmp_path,
            env={**os.environ, **more},
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.stdout == "tree ['a b', '*']\n", answer.stderr


@pytest.mark.parametrize(
    ("entry_points", "is_kept"),
    [("", True), ("[console_scripts]\ncalotype = cli:main\n", False)],
    ids=["the client", "the server of an earlier version"],
)
def test_make_install_removes_the_earlier_server_and_leaves_the_client(
    entry_points: str, is_kept: bool, tmp_path: Path
) -> None:
    """Both are distributions of the name `calotype`; the locks are empty, so that nothing is downloaded."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "deploy" / "command.py", tmp_path / "deploy")
    for name in ("requirements.lock", "requirements-quantization.lock", "requirements-traces.lock"):
        (tmp_path / name).write_text("# nothing\n")
    # What setuptools leaves in a tree that was installed in place says nothing of what is installed.
    _describe(tmp_path / "calotype.egg-info" / "PKG-INFO", "[console_scripts]\ncalotype = cli:main\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    site = next((tmp_path / ".venv" / "lib").glob("python3*/site-packages"))
    _describe(site / "calotype-0.1.0.dist-info" / "METADATA", entry_points)
    (site / "calotype-0.1.0.dist-info" / "RECORD").write_text(
        "".join(f"calotype-0.1.0.dist-info/{name},,\n" for name in ("METADATA", "RECORD", "entry_points.txt"))
    )
    answer = subprocess.run(
        ["make", "install", f"PYTHON={sys.executable}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert (site / "calotype-0.1.0.dist-info" / "METADATA").exists() == is_kept


def _describe(metadata: Path, entry_points: str) -> None:
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: calotype\nVersion: 0.1.0\n")
    (metadata.parent / "entry_points.txt").write_text(entry_points)
