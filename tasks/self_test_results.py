"""Results of self-tests as files, one a model and fingerprint, and what torch cannot tell of a machine.

Owns the folder and the facts that are read from the system. Whether a result holds is the engine's to say.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import structlog

import engine
from engine.self_test.kept import KeptSelfTest, SelfTestKey
from tasks.profiles import cpu_name

log = structlog.get_logger()

PACKAGES = (
    "torch", "diffusers", "transformers", "numpy", "scipy", "tokenizers", "safetensors", "accelerate",
    "torchao",
)  # fmt: skip
"""Those whose code computes."""
PREFIXES = (
    "ATEN_", "BLIS_", "CUBLAS_", "CUDA_", "CUDNN_", "DNNL_", "GOMP_", "KMP_", "LD_", "MKL_", "NVIDIA_",
    "OMP_", "ONEDNN_", "OPENBLAS_", "PYTORCH_", "TORCH_",
)  # fmt: skip
"""Of variables that libraries choose kernels by."""
LEFT_OUT = frozenset({"CUDA_VISIBLE_DEVICES"})
"""Which GPU it is differs between equal workers; its name and its memory are in the key."""


class SelfTestFolder:
    """A folder of results; it need not exist to be read. With `test_again` nothing in it is read."""

    def __init__(self, path: Path, machine: Mapping[str, str], *, test_again: bool = False) -> None:
        self.machine = machine
        self._path = path
        self._test_again = test_again

    def read(self, model: str, key: SelfTestKey, row_limits: Mapping[int, int]) -> KeptSelfTest | None:
        """The result of exactly this key, or nothing: also where the file is not what `write` left there."""
        if self._test_again:
            return None
        file = self._file(model, key)
        try:
            document = json.loads(file.read_bytes())
            if not isinstance(document, dict) or document.get("key") != key.plain():
                raise ValueError("it is of another key")
            return KeptSelfTest.from_dict(document.get("result"), row_limits)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            log.warning("self_test_result_not_read", file=str(file), error=str(error))
            return None

    def write(self, model: str, key: SelfTestKey, kept: KeptSelfTest) -> None:
        """Put the result there, over an older one of the same key, readable by its owner alone."""
        file = self._file(model, key)
        document = {"model": model, "key": key.plain(), "result": kept.to_dict()}
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
            # As in a container without a volume: it is tested at every start, which is slow and right.
            log.warning("self_test_result_not_kept", file=str(file), error=str(error))

    def _file(self, model: str, key: SelfTestKey) -> Path:
        return self._path / f"{model}.{key.fingerprint}.json"


def machine_facts(
    environment: Mapping[str, str] = os.environ,
    *,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    gpu_driver: Path = Path("/proc/driver/nvidia/version"),
    source: Path = Path(engine.__file__).parent,
) -> dict[str, str]:
    """Processor, GPU driver, packages, variables that kernels are chosen by, and the engine's own source."""
    facts = {
        "cpu": cpu_name(cpuinfo),
        "cpu_flags": _cpu_flags(cpuinfo),
        "gpu_driver": _text(gpu_driver),
        "python": sys.version,
        "source": source_digest(source),
    }
    facts |= {f"package {name}": _version(name) for name in PACKAGES}
    chosen = {name for name in environment if name.startswith(PREFIXES)} - LEFT_OUT
    return facts | {f"variable {name}": environment[name] for name in sorted(chosen)}


def source_digest(folder: Path) -> str:
    """Of every Python file below it, by name and content."""
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
