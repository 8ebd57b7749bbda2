"""Collects the facts about a machine that calotype depends on, without torch and without changing anything.

`local.doctor` decides which of these facts are good enough.
"""

import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from catalogue.catalogue import SettingsError
from catalogue.parts import file_in
from local.binaries import postgres_program, postgres_tree, valkey_program, weed_program
from local.errors import LocalError
from local.holder import find_holder
from local.ports import is_free, is_usable
from local.state import State
from settings import load_settings
from storage.database import Database
from storage.errors import StorageError

_CUDA_SECONDS, _PROGRAM_SECONDS = 120, 30
_ASK_CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8"
_ASK_CUDA = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


@dataclass(frozen=True)
class Place:
    """A folder, its free space, and the reason if it cannot be written."""

    path: Path
    free_bytes: int
    problem: str | None = None


@dataclass(frozen=True)
class Torch:
    """The torch that is installed, read without importing it."""

    version: str
    cuda: str | None
    """The CUDA version that it was built for; None for a CPU build."""


@dataclass(frozen=True)
class Machine:
    """Everything that the checks look at."""

    python: tuple[int, ...]
    system: str
    architecture: str
    libc: tuple[str, str]
    """Name and version of the C library, empty where it is not known."""
    data: Place
    temporary: Place
    shared_memory: Place | None
    memory_bytes: int | None
    """The memory that is available without swapping."""
    num_open_files: int
    programs: dict[str, str | None]
    """Each embedded server, with the problem of its program or None."""
    holder: int | None
    """The process id of the `calotype up` that runs in the data folder."""
    taken_ports: dict[str, int]
    """Ports of the data folder that another program listens on."""
    can_listen: bool
    """Whether a port on 127.0.0.1 can be opened at all."""
    torch: Torch | None
    driver: str | None
    """The version of NVIDIA's driver, or None."""
    num_gpus: int | None
    """The number of GPUs that torch can use; None if torch was not queried."""
    models: dict[str, str | None]
    """Each model of calotype.toml, with the problem of its weights or None."""
    settings_problem: str | None
    clock_skew_seconds: float | None
    """The clock of this machine minus that of the database; None while no embedded database runs."""


def look_at_machine(data_dir: Path) -> Machine:
    """Collect the facts about this machine; takes seconds only where a GPU must be queried."""
    folder = data_dir.absolute()
    holder = _holder(folder)
    state = _state(folder)
    torch, driver = _torch(), _driver()
    models, settings_problem = _models()
    return Machine(
        python=tuple(sys.version_info[:3]),
        system=platform.system(),
        architecture=platform.machine(),
        libc=platform.libc_ver(),
        data=_place(folder),
        temporary=_place(Path(tempfile.gettempdir())),
        shared_memory=_place(Path("/dev/shm")) if Path("/dev/shm").is_dir() else None,
        memory_bytes=_memory_bytes(),
        num_open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        programs={name: _program_problem(*how) for name, how in _PROGRAMS.items()},
        holder=holder,
        taken_ports=_taken_ports(state) if state and holder is None else {},
        can_listen=is_free(0),
        torch=torch,
        driver=driver,
        num_gpus=_num_gpus() if torch and torch.cuda and driver else None,
        models=models,
        settings_problem=settings_problem,
        clock_skew_seconds=_clock_skew(state) if state and holder else None,
    )


def _place(wanted: Path) -> Place:
    """Return the folder, or its nearest existing parent, in which it would be created."""
    path = next(path for path in (wanted, *wanted.parents) if path.is_dir())
    try:
        free_bytes = shutil.disk_usage(path).free
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"calotype")
    except OSError as error:
        return Place(path, 0, error.strerror or str(error))
    return Place(path, free_bytes)


def _holder(folder: Path) -> int | None:
    with suppress(LocalError), find_holder(folder) as holder:
        return holder.pid if holder else None
    return None


def _state(folder: Path) -> State | None:
    try:
        return State.read(folder)
    except LocalError:
        return None


def _taken_ports(state: State) -> dict[str, int]:
    return {name: port for name, port in state.ports.items() if not is_usable(name, port)}


_PROGRAMS: dict[str, tuple[Callable[[], Path], str]] = {
    "postgres": (lambda: postgres_program(postgres_tree(), "postgres"), "--version"),
    "valkey": (valkey_program, "--version"),
    "seaweedfs": (weed_program, "version"),
}


def _program_problem(find: Callable[[], Path], ask_version: str) -> str | None:
    """Run it to print its version: it may not support the C library or the processor."""
    try:
        path = find()
        answer = subprocess.run(
            [path, ask_version], capture_output=True, text=True, timeout=_PROGRAM_SECONDS, check=False
        )
    except LocalError as error:
        return str(error)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path} cannot be run: {error}"
    if answer.returncode == 0:
        return None
    said = (answer.stderr or answer.stdout).strip().splitlines()
    return f"{path} {ask_version} failed: {said[-1] if said else answer.returncode}"


def _memory_bytes() -> int | None:
    """Return the smaller of what the kernel reports as available and what the container's limit leaves."""
    found: list[int] = []
    with suppress(OSError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found += [int(line[1]) * 1024 for line in re.finditer(r"^MemAvailable:\s+(\d+) kB", text, re.M)]
    with suppress(OSError, ValueError):
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")
        found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")))
    return min(found, default=None)


def _torch() -> Torch | None:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    version = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda\b[^=]*= '([^']+)'", text, re.MULTILINE)
    return Torch(version[1] if version else "?", cuda[1] if cuda else None)


def _driver() -> str | None:
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
        if match := re.search(r"Module\D*?(\d+\.\d+(?:\.\d+)?)", text):
            return match[1]
    if not shutil.which("nvidia-smi"):
        return None
    answer = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], seconds=30)
    return answer.splitlines()[0].strip() if answer else None


def _num_gpus() -> int:
    """Query torch in a separate process: it takes seconds, and a broken driver may crash it."""
    answer = _output([sys.executable, "-c", _ASK_CUDA], seconds=_CUDA_SECONDS).strip()
    return int(answer) if answer.isdecimal() else 0


def _output(command: list[str], *, seconds: float) -> str:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def _models() -> tuple[dict[str, str | None], str | None]:
    try:
        settings = load_settings()
        catalogue = settings.catalogue
    except SettingsError as error:
        return {}, str(error)
    folder = settings.config.absolute().parent
    found: dict[str, str | None] = {}
    for model in catalogue.models:
        place = _weights_folder(folder, model.path)
        # A model that may be downloaded need not be here before its worker starts.
        is_fetched_later = not model.local_files_only and not place.exists()
        found[model.name] = None if is_fetched_later else _weights_problem(place)
    return found, None


def _weights_folder(folder: Path, path: str) -> Path:
    """Return a folder or file beside `calotype.toml`, or the place in the hub's cache for a model id."""
    if (folder / path).exists() or file_in(path) or path.count("/") != 1:
        return folder / path
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return cache / ("models--" + path.replace("/", "--")) / "snapshots"


def _weights_problem(folder: Path) -> str | None:
    if not folder.exists():
        return f"{folder} is not there"
    weights = [folder] if folder.is_file() else sorted(folder.rglob("*.safetensors"))
    if not weights:
        return f"{folder} holds no *.safetensors"
    for path in weights:
        # A Git LFS file that was not downloaded is a few lines of text.
        if not os.access(path, os.R_OK):
            return f"{path} cannot be read"
        if path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git-lfs"):
            return f"{path} is a pointer of Git LFS, not the weights"
    return None


def _clock_skew(state: State) -> float | None:
    from sqlalchemy import text

    from local.postgres import Postgres

    db = Database(Postgres(state).url, 1, transaction_seconds=5)
    try:
        with db.transaction() as connection:
            asked_at = time.time()
            there = connection.execute(text(_ASK_CLOCK)).scalar_one()
            # The server read its clock between the two instants: the middle is off by half the round trip.
            return (asked_at + time.time()) / 2 - float(there)
    except StorageError:
        return None
    finally:
        db.close()
