"""`calotype profile` measures the shipped model, keeps it where workers look, and says what it found."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from catalogue.catalogue import load_catalogue
from catalogue.profile import Profile
from cli.profile import measure_tiers, show
from cli.terminal import EXIT_USAGE
from engine.loading.load import LoadedModels
from settings import ROOT
from tasks.profiles import ProfileFolder, worker_profiles
from tests.unit.engine.fakes import Costly, FakeModel, SetClock

SD, HD = load_catalogue(ROOT / "calotype.toml").tiers


def run_profile(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli", "profile", "--seconds", "0", *arguments],
        cwd=ROOT,
        env={**os.environ, "CALOTYPE_PROFILES_DIR": str(folder), "CALOTYPE_SELF_TEST_SECONDS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def profile_in(file: Path) -> Profile:
    return Profile.from_dict(json.loads(file.read_text()))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Path]]:
    """What the command prints of all that is planned, and its files by tier."""
    folder = tmp_path_factory.mktemp("profiles")
    answer = run_profile(folder)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout, {file.name.partition(".")[0]: file for file in folder.glob("*.json")}


def test_the_shipped_model_is_measured_and_stored(measured: tuple[str, dict[str, Path]]) -> None:
    file = measured[1]["sd"]
    profile = profile_in(file)
    assert json.loads(file.read_text())["tier"] == "sd"
    assert file.name == f"sd.{profile.key.fingerprint}.json"
    buckets = [step.num_rows for step in profile.steps]  # the self-test may allow fewer than configured
    assert buckets == sorted(set(buckets))
    assert 4 in buckets
    assert 4 < buckets[-1] <= SD.max_step_batch_rows
    for step in profile.steps:
        assert 0 < step.low_seconds <= step.seconds <= step.high_seconds
        assert step.peak_memory_bytes is None, "on a CPU it is not measured"
    assert profile.steps[0].seconds < profile.steps[-1].seconds, "more rows cost more, on any CPU"
    assert (profile.key.width, profile.key.height) == (SD.default_width, SD.default_height)
    assert profile.encode_seconds > 0
    assert profile.decode_seconds > 0
    assert 0 < profile.cached_share < 0.5, "the deep part is nearly all of the shipped model"
    assert json.loads(file.read_text())["found"]["max_rows"] == profile.max_rows


def test_every_tier_of_the_plan_is_measured_and_shown_in_a_table(
    measured: tuple[str, dict[str, Path]],
) -> None:
    out, paths = measured
    files = {name: profile_in(path) for name, path in paths.items()}
    assert files.keys() == {"sd", "hd"}
    head, *lines = (line.split("\t") for line in out.splitlines())
    assert head[:6] == ["tier", "device", "rows", "seconds/step", "rows/s", "gain"]
    rows = [line for line in lines if len(line) > 1]
    shown = [(line[0], int(line[2]), line[3]) for line in rows]
    stored = [
        (name, step.num_rows, f"{step.seconds:.4g}") for name in ("sd", "hd") for step in files[name].steps
    ]
    assert shown == stored
    for name, profile in files.items():
        (verdict,) = re.findall(rf"^{name} on \S+: (batching.*)$", out, flags=re.MULTILINE)
        assert verdict.startswith(
            "batching is worth it" if profile.is_worth_batching else "batching is not worth it"
        )
        assert f"step batches are kept to {profile.max_rows}" in verdict
        assert f"a cached step {profile.cached_share:.2f} of a full one" in verdict


def test_a_tier_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    answer = run_profile(tmp_path, "--tier", "uhd")
    assert answer.returncode == EXIT_USAGE
    assert "uhd" in answer.stderr
    assert list(tmp_path.iterdir()) == []


def measured_on_an_abacus(
    folder: Path, step_seconds: Callable[[int], float]
) -> tuple[list[Any], LoadedModels]:
    clock = SetClock()
    model = FakeModel(denoiser=Costly(clock, step_seconds))
    loaded = LoadedModels({"tiny": model}, {"tiny": {16384: 16, 36864: 8}}, "exact")
    schedulers = {"tiny": "ddim"}
    found = measure_tiers(
        [SD], loaded, ProfileFolder(folder), device="cpu:0", schedulers=schedulers, seconds=0, clock=clock
    )
    return found, loaded


def test_where_batching_does_not_pay_it_says_so_and_the_worker_is_capped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, loaded = measured_on_an_abacus(tmp_path, lambda rows: rows / 4)
    show(found)
    out = capsys.readouterr().out
    assert "sd on cpu:0: batching is not worth it: 1.00 times the rows a second at best" in out
    assert "so step batches are kept to 4 rows" in out
    assert "shallow" not in out, "this model has no step cache"
    worker = worker_profiles(ProfileFolder(tmp_path), [SD, HD], loaded)
    assert worker.engine.capped(loaded.row_limits) == {"tiny": {16384: 4, 36864: 8}}
    (published,) = worker.published
    profile = published.profile
    assert (profile.max_rows, profile.is_worth_batching, profile.is_learned) == (4, False, False)


def test_where_batching_pays_up_to_a_knee_the_worker_is_capped_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, loaded = measured_on_an_abacus(tmp_path, lambda rows: 1.0 if rows <= 8 else rows / 8)
    show(found)
    out = capsys.readouterr().out
    assert "batching is worth it: 2.00 times the rows a second of 4 rows; the knee is at 8 rows" in out
    assert "step batches are kept to 8" in out
    worker = worker_profiles(ProfileFolder(tmp_path), [SD], loaded)
    assert worker.engine.capped(loaded.row_limits)["tiny"][16384] == 8
