"""Every command of the README's five minutes does what it says, against a running system."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx2
from PIL import Image

from settings import ROOT
from tests.e2e.conftest import System

README = (ROOT / "README.md").read_text(encoding="utf-8")
FIVE_MINUTES = README.partition("\n## Five minutes\n")[2].partition("\n## ")[0]


def test_the_five_minutes_of_the_readme_run_as_they_stand(system: System, tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", FIVE_MINUTES, re.MULTILINE | re.DOTALL)
    assert blocks.pop(0) == "make up\n"
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    program = tmp_path / ".venv" / "bin" / "calotype"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -P -m cli "$@"\n')
    program.chmod(0o755)
    script = "\n".join(f"{block}printf '\\n=====\\n'" for block in blocks)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CALOTYPE_")}
    answer = subprocess.run(
        ["bash", "-euc", script],
        cwd=tmp_path,
        env={**kept, "CALOTYPE_DATA_DIR": system.ready["data_dir"]},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for name in ("heart.png", "star.png"):
        with Image.open(tmp_path / name) as picture:
            picture.verify()
    rows = len((ROOT / "examples" / "prompts.csv").read_text(encoding="utf-8").splitlines()) - 1
    assert len(list((tmp_path / "images").glob("*.png"))) == rows
    assert '"state":"succeeded"' in answer.stdout.replace(" ", "")
    assert "line,prompt,state" in answer.stdout
    assert httpx2.get(system.ready["url"] + "/docs", timeout=30).status_code == 200
