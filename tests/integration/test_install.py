"""The promise of the installation: what failed is not taken for done."""

import shutil
import subprocess
import sys
from pathlib import Path

from settings import ROOT


def test_a_failed_pip_fails_the_installation_and_is_tried_again(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements-quantization.lock"):
        shutil.copy(ROOT / name, tmp_path)
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
