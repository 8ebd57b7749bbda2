"""S28: every command keeps its files in CALOTYPE_DATA_DIR, from any folder, and none in the checkout."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from local.tree import PROGRAM
from settings import ROOT
from tests.e2e.conftest import CONFIG

WORKER = '[[workers]]\ndevice = "cpu:0"\ntiers = ["sd", "hd"]\n'
NOT_OURS = {".git", ".venv", "__pycache__", ".calotype", "bench-output", "build", ".ci"}
"""Folders that other programs write: git, Python, test tools (all that begin with a dot), a running `up`."""


def files_of_the_checkout() -> dict[str, int]:
    """Every file, and when it was written."""
    found: dict[str, int] = {}
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name not in NOT_OURS and not name.endswith("_cache")]
        names[:] = [name for name in names if name != ".hypothesis"]
        found |= {str(path): path.lstat().st_mtime_ns for path in (Path(folder, name) for name in files)}
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A current folder with a catalogue of its own, of one worker."""
    catalogue, _, _ = CONFIG.format(
        path=ROOT / "models" / "tiny", loras=ROOT / "models" / "tiny-loras"
    ).partition("[[workers]]")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "calotype.toml").write_text(catalogue + WORKER)
    return tmp_path


def calotype(folder: Path, *words: str, data_dir: str = "data") -> str:
    """A command in that folder, with relative paths in its environment; what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CALOTYPE_")}
    environment |= {"PYTHONPATH": str(ROOT)}
    environment |= {"CALOTYPE_DATA_DIR": data_dir, "CALOTYPE_CONFIG": "conf/calotype.toml"}
    environment["CALOTYPE_SELF_TEST_SECONDS"] = "1"  # where its result lies is looked at, not what it says
    answer = subprocess.run(
        [*PROGRAM, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert answer.returncode == 0, (words, answer.stdout, answer.stderr)
    return answer.stdout


@pytest.mark.timeout(600)
def test_S28_profile_writes_where_the_workers_read_and_no_command_writes_into_the_checkout(
    folder: Path,
) -> None:
    before = files_of_the_checkout()
    profiles = folder / "data" / "profiles"
    (told,) = json.loads(calotype(folder, "profile", "--tier", "sd", "--seconds", "0", "--json"))
    (file,) = profiles.glob("*.json")
    assert (told.pop("tier"), told.pop("device"), told.pop("file")) == ("sd", "cpu:0", str(file))
    assert json.loads(file.read_text()) == {"tier": "sd", **told}
    calotype(folder, "doctor", "--json")
    calotype(folder, "up", "--detach")
    try:
        log = (folder / "data" / "logs" / "worker-cpu0.log").read_text(encoding="utf-8")
        assert '"profile_used"' in log
        assert [path.name for path in (profiles / "self-tests").iterdir()] != []
        assert json.loads(calotype(folder, "status", "--json"))["data_dir"] == str(folder / "data")
        calotype(folder, "submit", "a red heart", "--steps", "1", "-o", "heart.png")
        assert (folder / "heart.png").read_bytes().startswith(b"\x89PNG")
        assert json.loads(calotype(folder, "keys", "list", "--json"))
        assert "worker-cpu0" in calotype(folder, "logs", "-n", "1")
        shown = {one["name"]: one for one in json.loads(calotype(folder, "config", "show", "--json"))}
        assert shown["CALOTYPE_PROFILES_DIR"]["value"] == str(profiles)
        assert shown["CALOTYPE_CONFIG"]["value"] == str(folder / "conf" / "calotype.toml")
        calotype(folder, "config", "check")
    finally:
        assert "stopped" in calotype(folder, "down")
    assert files_of_the_checkout() == before
    assert {path.name for path in folder.iterdir()} == {"conf", "data", "heart.png"}


@pytest.mark.timeout(600)
def test_S28_the_demo_keeps_everything_in_a_folder_of_its_own_beside_that_of_up(folder: Path) -> None:
    before = files_of_the_checkout()
    (folder / "two.csv").write_text("prompt,num_inference_steps\na red heart,1\na blue star,1\n")
    calotype(folder, "demo", "--csv", "two.csv")
    assert {path.name for path in (folder / "data").iterdir()} == {"demo"}
    made = {path.name for path in (folder / "data" / "demo" / "output").iterdir()}
    assert made == {"contact-sheet.png", "jobs.json", "verdicts.json"}
    assert files_of_the_checkout() == before


@pytest.mark.parametrize("given", ["option", "environment"])
def test_S28_the_option_counts_before_the_environment_and_profiles_follow(folder: Path, given: str) -> None:
    words = ("--data-dir", "other") if given == "option" else ()
    shown = json.loads(calotype(folder, "config", "show", "--json", *words))
    entries = {one["name"]: (one["value"], one["origin"]) for one in shown}
    place = folder / ("other" if given == "option" else "data")
    origin = "--data-dir" if given == "option" else "environment"
    assert entries["CALOTYPE_DATA_DIR"] == (str(place), origin)
    assert entries["CALOTYPE_PROFILES_DIR"] == (str(place / "profiles"), "default")
