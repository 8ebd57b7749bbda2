"""The web needs no torch, and of the engine only the policy: its image has no more."""

import subprocess
import sys

from settings import ROOT


def test_importing_the_web_leaves_torch_and_the_rest_of_the_engine_out() -> None:
    code = (
        "import sys, web.app; print(sorted({'torch', 'diffusers'} & set(sys.modules)),"
        "[name for name in sys.modules if name.startswith('engine.') and 'engine.policy' not in name])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.split() == ["[]", "[]"]
