"""Whatever a self-test depends on and torch cannot tell shows in the facts of a machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.self_test_results import machine_facts


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, Any]:
    """A machine of files."""
    (tmp_path / "cpuinfo").write_text("model name\t: A CPU\nflags\t\t: avx avx2\nmodel name\t: A CPU\n")
    (tmp_path / "driver").write_text("NVRM version: 550.54\n")
    (tmp_path / "source" / "families").mkdir(parents=True)
    (tmp_path / "source" / "families" / "family.py").write_text("pass\n")
    (tmp_path / "catalogue").mkdir()
    (tmp_path / "catalogue" / "step_cache.py").write_text("pass\n")
    return {
        "environment": {"OMP_NUM_THREADS": "1", "PATH": "/bin"},
        "cpuinfo": tmp_path / "cpuinfo",
        "gpu_driver": tmp_path / "driver",
        "sources": (tmp_path / "source", tmp_path / "catalogue"),
    }


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another processor": lambda one: one["cpuinfo"].write_text("model name: B CPU\nflags: avx avx2\n"),
    "other flags": lambda one: one["cpuinfo"].write_text("model name: A CPU\nflags: avx\n"),
    "another driver": lambda one: one["gpu_driver"].write_text("NVRM version: 600.1\n"),
    "no driver": lambda one: one["gpu_driver"].unlink(),
    "a variable": lambda one: one["environment"].update(OMP_NUM_THREADS="2"),
    "one more variable": lambda one: one["environment"].update(CUBLAS_WORKSPACE_CONFIG=":4096:8"),
    "other code": lambda one: (one["sources"][0] / "families" / "family.py").write_text("pass  # now\n"),
    "another rule of the catalogue": lambda one: (one["sources"][1] / "step_cache.py").write_text(""),
    "a new module": lambda one: (one["sources"][0] / "new.py").write_text(""),
    "a module of another name": lambda one: (one["sources"][0] / "families" / "family.py").rename(
        one["sources"][0] / "families" / "kin.py"
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_S38_a_change_of_the_machine_shows(
    machine: dict[str, Any], change: Callable[[dict[str, Any]], object]
) -> None:
    before = machine_facts(**machine)
    change(machine)
    assert machine_facts(**machine) != before


def test_S38_what_computes_nothing_does_not_show(machine: dict[str, Any]) -> None:
    before = machine_facts(**machine)
    machine["environment"] |= {"PATH": "/usr/bin", "CUDA_VISIBLE_DEVICES": "1"}
    (machine["sources"][0] / "notes.txt").write_text("")
    assert machine_facts(**machine) == before


def test_S38_a_machine_that_tells_nothing_has_facts(machine: dict[str, Any], tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    facts = machine_facts({}, cpuinfo=nowhere, gpu_driver=nowhere, sources=machine["sources"])
    assert facts["package torch"]
    assert facts["cpu_flags"] == ""
