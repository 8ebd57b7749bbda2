"""Stores results of self-tests as files, one per model and fingerprint, and reads the facts of the machine.

Owns the folder, and the facts that torch does not report. The engine decides whether a result is valid.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import structlog

import catalogue
import engine
from engine.self_test.stored_result import SelfTestKey, StoredSelfTest
from tasks.profiles import cpu_name

log = structlog.get_logger()

PACKAGES = (
    "torch", "diffusers", "transformers", "numpy", "scipy", "tokenizers", "safetensors", "accelerate",
    "torchao",
)  # fmt: skip
"""The packages whose versions can change results."""
PREFIXES = (
    "ATEN_", "BLIS_", "CUBLAS_", "CUDA_", "CUDNN_", "DNNL_", "GOMP_", "KMP_", "LD_", "MKL_", "NVIDIA_",
    "OMP_", "ONEDNN_", "OPENBLAS_", "PYTORCH_", "TORCH_",
)  # fmt: skip
"""Prefixes of environment variables by which libraries choose kernels."""
LEFT_OUT = frozenset({"CUDA_VISIBLE_DEVICES"})
"""Equal workers differ in the number of their GPU; its name and memory are in the key instead."""


class SelfTestFolder:
    """A folder of results, which may not exist yet. With `test_again` it reads none of them."""

    def __init__(self, path: Path, machine: Mapping[str, str], *, test_again: bool = False) -> None:
        self.machine = machine
        self._path = path
        self._test_again = test_again

    def read(self, model: str, key: SelfTestKey, row_limits: Mapping[int, int]) -> StoredSelfTest | None:
        """The result for exactly this key; `None` if there is none or the file is damaged."""
        if self._test_again:
            return None
        file = self._file(model, key)
        try:
            document = json.loads(file.read_bytes())
            if not isinstance(document, dict) or document.get("key") != key.plain():
                raise ValueError("the file has another key")
            return StoredSelfTest.from_dict(document.get("result"), row_limits)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            log.warning("self_test_result_not_read", file=str(file), error=str(error))
            return None

    def write(self, model: str, key: SelfTestKey, stored: StoredSelfTest) -> None:
        """Write the result, replacing one of the same key; only the owner can read the file."""
        file = self._file(model, key)
        document = {"model": model, "key": key.plain(), "result": stored.to_dict()}
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._path, prefix=f".{file.name}.")  # 0600
            unfinished = Path(name)
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as output:
                    output.write(json.dumps(document, indent=2) + "\n")
                unfinished.replace(file)
            except OSError:
                unfinished.unlink(missing_ok=True)
                raise
        except OSError as error:
            # For example a container without a volume: tests run at every start, slow but correct.
            log.warning("self_test_result_not_kept", file=str(file), error=str(error))

    def _file(self, model: str, key: SelfTestKey) -> Path:
        return self._path / f"{model}.{key.fingerprint}.json"


def machine_facts(
    environment: Mapping[str, str] = os.environ,
    *,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    gpu_driver: Path = Path("/proc/driver/nvidia/version"),
    sources: Sequence[Path] = (Path(engine.__file__).parent, Path(catalogue.__file__).parent),
) -> dict[str, str]:
    """CPU, GPU driver, package versions, environment variables and digests of the source of a test."""
    facts = {
        "cpu": cpu_name(cpuinfo),
        "cpu_flags": _cpu_flags(cpuinfo),
        "gpu_driver": _text(gpu_driver),
        "python": sys.version,
        **{f"source {folder.name}": source_digest(folder) for folder in sources},
    }
    facts |= {f"package {name}": _version(name) for name in PACKAGES}
    chosen = {name for name in environment if name.startswith(PREFIXES)} - LEFT_OUT
    return facts | {f"variable {name}": environment[name] for name in sorted(chosen)}


def source_digest(folder: Path) -> str:
    """The SHA-256 over the names and contents of all Python files below the folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()


def _cpu_flags(cpuinfo: Path) -> str:
    lines = _text(cpuinfo).splitlines()
    named = (
        line.partition(":")[2].strip() for line in lines if line.lower().startswith(("flags", "features"))
    )
    return next(named, "")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
