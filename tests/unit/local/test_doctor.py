"""The promises of `calotype doctor`: what would stop calotype is found, and each time with its fix."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from local.doctor import CHECKS, examine
from local.machine import Machine, Place, Torch, look_at_machine
from settings import ROOT

GIB = 2**30
HEALTHY = Machine(
    python=(3, 11, 7),
    system="Linux",
    architecture="x86_64",
    libc=("glibc", "2.36"),
    data=Place(Path("/data"), 100 * GIB),
    temporary=Place(Path("/tmp"), 10 * GIB),
    shared_memory=Place(Path("/dev/shm"), GIB),
    memory_bytes=8 * GIB,
    num_open_files=1024,
    programs={"postgres": None, "valkey": None, "seaweedfs": None},
    holder=None,
    taken_ports={},
    can_listen=True,
    torch=Torch("2.13.0+cpu", None),
    driver=None,
    num_gpus=None,
    models={"tiny": None},
    settings_problem=None,
    clock_skew_seconds=None,
)
CUDA = Torch("2.13.0+cu130", "13.0")


def test_a_healthy_machine_has_nothing_to_mend() -> None:
    findings = examine(HEALTHY)
    assert len(findings) == len(CHECKS)
    assert {finding.state for finding in findings} == {"ok"}
    assert [finding.name for finding in findings if finding.fix] == []
    assert len({finding.name for finding in findings}) == len(CHECKS)


def test_a_machine_without_a_gpu_is_healthy_and_one_with_it_too() -> None:
    gpu = {finding.name: finding for finding in examine(HEALTHY)}["gpu"]
    assert (gpu.state, "CPU" in gpu.found) == ("ok", True)
    machine = replace(HEALTHY, torch=CUDA, driver="580.95.05", num_gpus=1)
    assert {finding.state for finding in examine(machine)} == {"ok"}


@pytest.mark.parametrize(
    ("change", "name", "state", "fix"),
    [
        ({"python": (3, 10, 9)}, "python", "FAIL", "3.11"),
        ({"libc": ("glibc", "2.27")}, "platform", "FAIL", "2.28"),
        ({"libc": ("", "")}, "platform", "FAIL", "musl"),
        ({"architecture": "riscv64"}, "platform", "FAIL", "use-your-own-services"),
        ({"system": "Windows"}, "platform", "FAIL", "use-your-own-services"),
        ({"settings_problem": "CALOTYPE_LEASE is not a setting"}, "settings", "FAIL", "settings.md"),
        ({"programs": {"postgres": "cannot be run"}}, "programs", "FAIL", "make install"),
        ({"data": Place(Path("/data"), 0, "Permission denied")}, "data folder", "FAIL", "--data-dir"),
        ({"data": Place(Path("/data"), GIB // 2)}, "data folder", "FAIL", "make room"),
        ({"data": Place(Path("/data"), 2 * GIB)}, "data folder", "warn", "make room"),
        ({"temporary": Place(Path("/tmp"), 0, "Read-only")}, "temporary folder", "FAIL", "TMPDIR"),
        ({"temporary": Place(Path("/tmp"), 1000)}, "temporary folder", "warn", "TMPDIR"),
        ({"shared_memory": Place(Path("/dev/shm"), 1000)}, "shared memory", "warn", "--shm-size"),
        ({"memory_bytes": GIB // 2}, "memory", "FAIL", "[[workers]]"),
        ({"memory_bytes": 2 * GIB}, "memory", "warn", "[[workers]]"),
        ({"num_open_files": 64}, "open files", "FAIL", "ulimit -n"),
        ({"num_open_files": 512}, "open files", "warn", "ulimit -n"),
        ({"can_listen": False}, "ports", "FAIL", "loopback"),
        ({"taken_ports": {"web": 12345}}, "ports", "warn", "ss -ltnp"),
        ({"torch": None}, "torch", "warn", "make install"),
        ({"driver": "580.95"}, "gpu", "warn", "run-workers-on-gpus"),
        ({"driver": "535.1.2", "torch": CUDA, "num_gpus": 1}, "gpu", "FAIL", "580"),
        ({"driver": "580.95", "torch": CUDA, "num_gpus": 0}, "gpu", "warn", "nvidia-smi"),
        ({"models": {"tiny": "a pointer of Git LFS"}}, "models", "FAIL", "git lfs pull"),
        ({"clock_skew_seconds": -7.0}, "clock", "warn", "NTP"),
    ],
)
def test_what_is_wrong_is_found_alone_and_comes_with_its_fix(
    change: dict[str, Any], name: str, state: str, fix: str
) -> None:
    findings = examine(replace(HEALTHY, **change))
    wrong = [finding for finding in findings if finding.state != "ok"]
    assert [(finding.name, finding.state) for finding in wrong] == [(name, state)]
    assert fix in (wrong[0].fix or "")


def test_a_machine_for_the_api_alone_needs_neither_torch_nor_weights() -> None:
    findings = examine(replace(HEALTHY, torch=None, models={"tiny": "is not there"}))
    assert {finding.state for finding in findings} == {"ok", "warn"}


def test_without_limit_a_process_may_open_files_enough() -> None:
    states = {finding.name: finding.state for finding in examine(replace(HEALTHY, num_open_files=-1))}
    assert states["open files"] == "ok"


def test_the_pages_that_a_fix_names_exist() -> None:
    for page in ("use-your-own-services", "run-workers-on-gpus"):
        assert (ROOT / "docs" / "howto" / f"{page}.md").is_file()
    assert (ROOT / "docs" / "reference" / "settings.md").is_file()


def test_this_machine_is_looked_at_and_fit(tmp_path: Path) -> None:
    machine = look_at_machine(tmp_path / "not yet")
    assert machine.data.path == tmp_path
    assert machine.data.free_bytes > 0
    assert set(machine.programs.values()) == {None}
    assert machine.models == {"tiny": None}
    assert machine.holder is None
    assert [finding for finding in examine(machine) if finding.state == "FAIL"] == []


def test_a_folder_that_cannot_be_written_is_known_by_trying() -> None:
    place = look_at_machine(Path("/proc/self/calotype")).data
    assert (place.path, place.problem is None) == (Path("/proc/self"), False)


def test_looking_imports_no_torch(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from local.machine import look_at_machine as look; "
    code += "look(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
