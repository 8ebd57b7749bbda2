"""Checks for what would keep calotype from running on a machine, with advice on how to fix it.

It owns the limits and the advice. Each check reads the facts that it is given, so that a test can pass any
machine.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from local.machine import Machine, Place

_GIB = 2**30
MIN_PYTHON = (3, 11)
MIN_GLIBC = (2, 28)
"""The C library that the wheels of the embedded servers need (manylinux_2_28)."""
ARCHITECTURES = frozenset({"x86_64", "AMD64", "aarch64", "arm64"})
FAIL_DISK_BYTES, WARN_DISK_BYTES = _GIB, 5 * _GIB
WARN_TEMPORARY_BYTES = 256 * 2**20
FAIL_MEMORY_BYTES, WARN_MEMORY_BYTES = _GIB, 3 * _GIB
WARN_SHARED_MEMORY_BYTES = 64 * 2**20
FAIL_OPEN_FILES, WARN_OPEN_FILES = 256, 1024
WARN_SKEW_SECONDS = 2.0
MIN_DRIVERS = {"11": 450, "12": 525, "13": 580}
"""The oldest driver branch of each CUDA major version (NVIDIA, CUDA Toolkit release notes, table 2)."""


@dataclass(frozen=True)
class Finding:
    """The result of one check, and the advice if something is wrong."""

    name: str
    state: Literal["ok", "warn", "FAIL"]
    found: str
    fix: str | None = None


Check = Callable[[Machine], Finding]


def examine(machine: Machine) -> list[Finding]:
    """Run every check, in the order in which a person would fix problems."""
    return [check(machine) for check in CHECKS]


def check_python(machine: Machine) -> Finding:
    """Check that this Python is new enough."""
    found = ".".join(map(str, machine.python))
    if machine.python < MIN_PYTHON:
        return Finding(
            "python", "FAIL", found, "install Python 3.11 or newer: make PYTHON=python3.11 install"
        )
    return Finding("python", "ok", f"{found} ({sys.executable})")


def check_platform(machine: Machine) -> Finding:
    """Check that the embedded servers support this system and its C library."""
    name, version = machine.libc
    found = " ".join(filter(None, (machine.system, machine.architecture, name, version)))
    yours = "use your own Postgres, Redis and S3 instead: docs/howto/use-your-own-services.md"
    if machine.system not in ("Linux", "Darwin") or machine.architecture not in ARCHITECTURES:
        return Finding("platform", "FAIL", found, f"the embedded servers are not built for it; {yours}")
    if machine.system == "Linux" and name != "glibc":
        return Finding("platform", "FAIL", found, f"the embedded servers need glibc (not musl); {yours}")
    if machine.system == "Linux" and _numbers(version) < MIN_GLIBC:
        wanted = ".".join(map(str, MIN_GLIBC))
        return Finding("platform", "FAIL", found, f"glibc {wanted} or newer is needed; {yours}")
    return Finding("platform", "ok", found)


def check_settings(machine: Machine) -> Finding:
    """Check that the environment and `calotype.toml` can be read."""
    if machine.settings_problem:
        return Finding("settings", "FAIL", machine.settings_problem, "see docs/reference/settings.md")
    return Finding("settings", "ok", "the environment and calotype.toml are valid")


def check_programs(machine: Machine) -> Finding:
    """Check that the programs of the embedded servers exist and run."""
    wrong = [problem for problem in machine.programs.values() if problem]
    if wrong:
        return Finding("programs", "FAIL", "; ".join(wrong), "run `make install` again")
    return Finding("programs", "ok", ", ".join(machine.programs))


def check_data_folder(machine: Machine) -> Finding:
    """Check that the data folder is writable and has free space."""
    return _check_place("data folder", machine.data, FAIL_DISK_BYTES, WARN_DISK_BYTES, "--data-dir")


def check_temporary_folder(machine: Machine) -> Finding:
    """Check that temporary files can be written."""
    return _check_place("temporary folder", machine.temporary, 0, WARN_TEMPORARY_BYTES, "TMPDIR")


def check_shared_memory(machine: Machine) -> Finding:
    """Check the shared memory that Postgres and torch need; containers often have little."""
    place = machine.shared_memory
    if place is None:
        return Finding("shared memory", "ok", "there is no /dev/shm, and none is needed here")
    fix = "give the container more: --shm-size=1g, or shm_size in the compose file"
    if place.problem:
        return Finding("shared memory", "FAIL", f"{place.path}: {place.problem}", fix)
    found = f"{_size(place.free_bytes)} free"
    if place.free_bytes < WARN_SHARED_MEMORY_BYTES:
        return Finding("shared memory", "warn", found, fix)
    return Finding("shared memory", "ok", found)


def check_memory(machine: Machine) -> Finding:
    """Check that memory suffices for two CPU workers, three servers and the API."""
    if machine.memory_bytes is None:
        return Finding("memory", "warn", "not known on this system", "3 GiB are enough for the tiny model")
    found = f"{_size(machine.memory_bytes)} available"
    fix = "end other programs, or name fewer devices under [[workers]] in calotype.toml"
    if machine.holder is not None or machine.memory_bytes >= WARN_MEMORY_BYTES:
        return Finding("memory", "ok", found)
    return Finding("memory", "FAIL" if machine.memory_bytes < FAIL_MEMORY_BYTES else "warn", found, fix)


def check_open_files(machine: Machine) -> Finding:
    """Check that a process may open enough files and sockets."""
    found = f"{machine.num_open_files} for each process"
    if machine.num_open_files >= WARN_OPEN_FILES or machine.num_open_files < 0:  # below 0: without limit
        return Finding("open files", "ok", found)
    state: Literal["warn", "FAIL"] = "FAIL" if machine.num_open_files < FAIL_OPEN_FILES else "warn"
    return Finding("open files", state, found, f"ulimit -n {WARN_OPEN_FILES}, or LimitNOFILE= in the unit")


def check_ports(machine: Machine) -> Finding:
    """Check that the servers can listen on their ports again."""
    if machine.holder is not None:
        return Finding("ports", "ok", f"in use by the running `calotype up` (process {machine.holder})")
    if not machine.can_listen:
        fix = "bring the loopback interface up: ip link set lo up"
        return Finding("ports", "FAIL", "no port on 127.0.0.1 can be opened", fix)
    if machine.taken_ports:
        taken = ", ".join(f"{port} of {name}" for name, port in machine.taken_ports.items())
        fix = "nothing to do: `up` chooses others; to keep them, end the listening program (ss -ltnp)"
        return Finding("ports", "warn", f"taken by another program: {taken}", fix)
    return Finding("ports", "ok", "the ports of the data folder are free, or not chosen yet")


def check_torch(machine: Machine) -> Finding:
    """Check that torch is installed, and report its build."""
    if machine.torch is None:
        fix = "workers need it: run `make install`; API, sweeper and webhooks do not"
        return Finding("torch", "warn", "not installed", fix)
    return Finding("torch", "ok", f"{machine.torch.version}, {_build(machine)}")


def check_gpu(machine: Machine) -> Finding:
    """Check that driver and torch match; a machine without a GPU passes."""
    cuda = machine.torch.cuda if machine.torch else None
    if machine.driver is None:
        return Finding("gpu", "ok", "no NVIDIA driver: the CPU is used")
    driver = f"driver {machine.driver}"
    if machine.torch is None:
        return Finding("gpu", "ok", driver)
    if cuda is None:
        fix = "docs/howto/run-workers-on-gpus.md says how to install torch's CUDA build"
        return Finding(
            "gpu", "warn", f"{driver}, but torch {machine.torch.version} is {_build(machine)}", fix
        )
    needed = MIN_DRIVERS.get(cuda.partition(".")[0])
    if needed is not None and _numbers(machine.driver) < (needed,):
        fix = f"update the driver to {needed} or newer, or install a torch for an older CUDA"
        return Finding("gpu", "FAIL", f"{driver} is too old for CUDA {cuda}", fix)
    if not machine.num_gpus:
        fix = "`nvidia-smi` must list a GPU; in a container: --gpus all and the NVIDIA container toolkit"
        return Finding("gpu", "warn", f"{driver}, CUDA {cuda}, but torch sees no GPU", fix)
    return Finding("gpu", "ok", f"{machine.num_gpus} usable, {driver}, CUDA {cuda}")


def check_models(machine: Machine) -> Finding:
    """Check that the weights that `calotype.toml` names are on disk."""
    wrong = [f"{name}: {problem}" for name, problem in machine.models.items() if problem]
    if wrong:
        fix = "put safetensors at `path`, or download the hub model first; run `git lfs pull` for a pointer"
        # Without torch no worker runs here, so that no weights are needed.
        return Finding("models", "FAIL" if machine.torch else "warn", "; ".join(wrong), fix)
    return Finding("models", "ok", ", ".join(machine.models) or "none")


def check_clock(machine: Machine) -> Finding:
    """Check that this clock agrees with the clock of the database, which decides all times of jobs."""
    skew = machine.clock_skew_seconds
    if skew is None:
        return Finding("clock", "ok", "no database of calotype runs here to compare with")
    if abs(skew) > WARN_SKEW_SECONDS:
        fix = "synchronise it by NTP: presigned links and logs are off by the same amount"
        return Finding("clock", "warn", f"{skew:+.1f} s from the database's", fix)
    return Finding("clock", "ok", "agrees with the database's")


CHECKS: tuple[Check, ...] = (
    check_python,
    check_platform,
    check_settings,
    check_programs,
    check_data_folder,
    check_temporary_folder,
    check_shared_memory,
    check_memory,
    check_open_files,
    check_ports,
    check_torch,
    check_gpu,
    check_models,
    check_clock,
)


def _check_place(name: str, place: Place, fail_bytes: int, warn_bytes: int, option: str) -> Finding:
    if place.problem:
        fix = f"make it writable for this user, or choose another one with {option}"
        return Finding(name, "FAIL", f"{place.path}: {place.problem}", fix)
    found = f"{place.path}: {_size(place.free_bytes)} free"
    if place.free_bytes >= warn_bytes:
        return Finding(name, "ok", found)
    fix = f"make room, or choose another disk by {option}"
    return Finding(name, "FAIL" if place.free_bytes < fail_bytes else "warn", found, fix)


def _build(machine: Machine) -> str:
    cuda = machine.torch.cuda if machine.torch else None
    return f"built for CUDA {cuda}" if cuda else "built for the CPU alone"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"
