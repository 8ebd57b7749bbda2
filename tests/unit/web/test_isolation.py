"""The web needs no torch."""

import subprocess
import sys

from settings import ROOT


def test_importing_the_web_leaves_torch_out() -> None:
    code = "import sys, web.app; print(sorted({'torch', 'diffusers', 'engine'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"
