"""The promises of the worker's process: it does not start half."""

import os
import subprocess
import sys
from pathlib import Path

from local.endpoints import Embedded
from settings import ROOT
from tasks.worker import EXIT_NO_ENGINE


def run_worker(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli", "worker", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_worker_whose_engine_cannot_be_loaded_exits_non_zero_and_says_why(
    migrated: Embedded, tmp_path: Path
) -> None:
    config = tmp_path / "calotype.toml"
    text = (ROOT / "calotype.toml").read_text()
    config.write_text(text.replace("models/tiny", str(tmp_path / "no-such-model")))
    answer = run_worker({**migrated.environment, "CALOTYPE_CONFIG": str(config)}, "--device", "cpu:0")
    assert answer.returncode == EXIT_NO_ENGINE
    assert "no-such-model" in answer.stderr


def test_a_mistyped_tier_is_refused_by_name(migrated: Embedded) -> None:
    answer = run_worker(migrated.environment, "--device", "cpu:0", "--tiers", "sd,uhd")
    assert answer.returncode == 1
    assert "uhd" in answer.stderr


def test_a_device_that_is_not_there_is_refused_by_name(migrated: Embedded) -> None:
    answer = run_worker(migrated.environment, "--device", "cuda:77")
    assert answer.returncode == 1
    assert "cuda:77" in answer.stderr
