"""The devices of this machine, and the environment of a worker pinned to one of them; found without torch."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from local.errors import WrongUsage

_CPU_DEVICES = ("cpu:0", "cpu:1")


@dataclass(frozen=True)
class Device:
    """One device, and the part of the machine that its worker uses."""

    name: str
    """`cuda:N`, where N counts the GPUs that this process can see, or `cpu:N`."""
    cores: frozenset[int] | None = None
    """The cores that it is pinned to; empty if it is not pinned."""
    num_threads: int = 1
    visible: str | None = None
    """The value of CUDA_VISIBLE_DEVICES with which a process sees only this GPU, as `cuda:0`."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a worker on this device."""
        threads = {name: str(self.num_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        visible = {} if self.visible is None else {"CUDA_VISIBLE_DEVICES": self.visible}
        # nvidia-smi numbers GPUs by bus, CUDA by speed unless this variable is set.
        return threads | visible | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def find_devices(
    environment: Mapping[str, str] = os.environ, cores: frozenset[int] | None = None
) -> tuple[Device, ...]:
    """Return every CUDA device, or two CPU devices on a machine without a GPU."""
    gpus = visible_gpus(_list_gpus(), environment.get("CUDA_VISIBLE_DEVICES"))
    if gpus:
        threads = max(1, len(cores or _own_cores()) // len(gpus))
        return tuple(Device(f"cuda:{n}", num_threads=threads, visible=name) for n, name in enumerate(gpus))
    return share_cores(_CPU_DEVICES, cores or _own_cores())


def select_devices(wanted: str, devices: Sequence[Device]) -> tuple[Device, ...]:
    """Return the devices of a `[[workers]]` entry: all of them for `auto`, else the named one."""
    if wanted == "auto":
        return tuple(devices)
    named = tuple(device for device in devices if device.name == wanted)
    if named or not wanted.startswith("cpu:"):
        return named
    return (Device(wanted, num_threads=len(_own_cores()), visible=""),)


def pin_this_process(name: str) -> None:
    """Pin this process to a device, as `calotype up` does for its workers. Call it before torch is imported.

    Raises `WrongUsage` when this machine has no such device.
    """
    devices = find_devices()
    selected = select_devices(name, devices)
    if not selected:
        there = ", ".join(device.name for device in devices)
        raise WrongUsage(f"--device: this machine has no {name}; it has: {there}")
    os.environ.update(selected[0].environment)
    if selected[0].cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, selected[0].cores)


def share_cores(names: Sequence[str], cores: frozenset[int]) -> tuple[Device, ...]:
    """Split the cores into one contiguous range per name; if there are too few, all names share all cores."""
    ordered, count = sorted(cores), len(names)
    if len(ordered) < count:
        shares = [ordered] * count
    else:
        shares = [ordered[len(ordered) * n // count : len(ordered) * (n + 1) // count] for n in range(count)]
    return tuple(
        Device(name, cores=frozenset(share), num_threads=len(share), visible="")
        for name, share in zip(names, shares, strict=True)
    )


def visible_gpus(listing: str, limit: str | None) -> list[str]:
    """Return the GPUs in the output of `nvidia-smi -L`, selected and ordered by CUDA_VISIBLE_DEVICES.

    A GPU in MIG mode is listed by its slices, because CUDA can open only those.
    """
    gpus: list[tuple[str, str, list[str]]] = []
    for line in listing.splitlines():
        if gpu := re.match(r"GPU (\d+):.*\(UUID: (GPU-[^)]+)\)", line):
            gpus.append((gpu[1], gpu[2], []))
        elif gpus and (mig := re.search(r"\(UUID: (MIG-[^)]+)\)", line)):
            gpus[-1][2].append(mig[1])
    slices = [name for index, _, parts in gpus for name in (parts or [index])]
    if limit is None:
        return slices
    seen = []
    for entry in filter(None, (part.strip() for part in limit.split(","))):
        known = entry in slices or any(
            entry == index or (len(entry) > 4 and uuid.startswith(entry)) for index, uuid, _ in gpus
        )
        if not known:
            break  # as in CUDA, entries after an unknown one are invisible
        seen.append(entry)
    return seen


def _list_gpus() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def _own_cores() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))
