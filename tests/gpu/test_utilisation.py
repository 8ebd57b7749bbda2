"""How busy a GPU is, as `calotype bench` reads it of the machine that it runs on."""

import time
from collections.abc import Callable

import pytest
import torch

from bench.load.utilisation import watched

pytestmark = pytest.mark.filterwarnings("ignore")

BUSY_SECONDS = 3.5


def test_a_gpu_that_works_has_a_busy_share(gpu: str, note: Callable[[str], None]) -> None:
    pytest.importorskip("pynvml", reason="GPUs are read with the package nvidia-ml-py")
    matrix = torch.ones(4096, 4096, device=gpu)
    with watched([]) as use:
        until = time.monotonic() + BUSY_SECONDS
        while time.monotonic() < until:
            matrix = (matrix @ matrix).clamp(max=1.0)
            torch.cuda.synchronize(gpu)
    found = use.as_json()
    note(f"busy shares {found['gpu_shares']}, unread {found['unread_gpus']}")
    if found["unread_gpus"]:
        pytest.skip(f"NVML says: {found['unread_gpus']}")
    assert 0 < found["gpu_share"] <= 1
    assert all(0 <= share <= 1 for share in found["gpu_shares"])
