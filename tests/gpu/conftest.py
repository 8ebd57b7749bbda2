"""The device that these tests run on, full precision on it, and what they found, printed at the end.

The device is the first GPU, or what `CALOTYPE_TEST_DEVICE` names: `cpu:0` runs all that needs no GPU. Without
a GPU and without that variable nothing here runs.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.gpu.drawing import Engines

ASKED = os.environ.get("CALOTYPE_TEST_DEVICE", "")
FOLDER = Path(__file__).parent
FINDINGS = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave this folder out where there is no device for it; one test stays, skipped, and says so."""
    if torch.cuda.is_available() or ASKED:
        return
    ours = [item for item in items if FOLDER in item.path.parents]
    if not ours:
        return
    reason = f"no GPU here for {len(ours)} tests: `make test-gpu` is for the owner of one"
    ours[0].add_marker(pytest.mark.skip(reason=reason))
    items[:] = [item for item in items if item not in ours[1:]]
    config.hook.pytest_deselected(items=ours[1:])


@pytest.fixture(scope="session")
def device() -> str:
    """`cuda:0` or `cpu:0`."""
    if not (torch.cuda.is_available() or ASKED.startswith("cpu")):
        pytest.exit(f"CALOTYPE_TEST_DEVICE is {ASKED}, and torch finds no GPU here", returncode=1)
    return ASKED or "cuda:0"


@pytest.fixture
def gpu(device: str) -> str:
    """The device, for tests that mean nothing on a CPU."""
    if not device.startswith("cuda"):
        pytest.skip("only a GPU can show this")
    return device


@pytest.fixture(scope="session", autouse=True)
def full_precision(device: str) -> Iterator[None]:  # noqa: ARG001  asked for first: it may end the run
    """Without TF32: fp32 is compared to 2/255 here, and TF32 keeps 10 bits of a mantissa."""
    num_threads = torch.get_num_threads()
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def engines(device: str, tmp_path_factory: pytest.TempPathFactory) -> Engines:
    """Engines of one model each, loaded once."""
    return Engines(device, tmp_path_factory.mktemp("models"))


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Have a line printed at the end of the run: what was measured and nobody can know beforehand."""
    findings = request.config.stash.setdefault(FINDINGS, [])
    return lambda line: findings.append(f"{request.node.name}: {line}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the machine and the findings."""
    findings = config.stash.get(FINDINGS, [])
    if not findings:
        return
    terminalreporter.section("what tests/gpu found")
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    terminalreporter.line(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    for line in findings:
        terminalreporter.line(line)
