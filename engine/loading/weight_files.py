"""Checks that a model's files have the format of their names, before a library reads them.

Reads the first bytes of weights and configuration: a safetensors header whose tensors are all within the
file, GGUF, JSON. It also recognizes what is often saved in place of these. It knows neither torch nor how the
weights are used.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from engine.errors import LoadError

LFS_POINTER = b"version https://git-lfs"
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of a zip as torch saves it, and of older pickle protocols."""
MAX_HEADER_BYTES = 100_000_000
"""Limit of the safetensors library."""
START_BYTES = 64
DTYPES = (
    *("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64", "C64"),
    *("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "F6_E2M3", "F6_E3M2"),
)
"""The dtypes of safetensors."""
CONFIGURATION = ("config.json", "model_index.json", ".index.json")
"""Suffixes of the names of JSON files that must contain an object."""
AGAIN = "fetch it again (into the hub's cache with `hf download --force-download`)"

FileFacts = list[tuple[str, int, int]]
"""Name, size (bytes) and modification time (ns) of every file that is read."""


def check_files(folder: Path, names: Collection[str]) -> None:
    """Raise `LoadError`, which names the file, for one that is broken, truncated, or of another format."""
    for name in names:
        path = folder / name
        if name.endswith(".safetensors"):
            tensors_in(path, name)
        else:
            _check_text(path, name)


def facts_of(paths: Mapping[str, Path]) -> FileFacts:
    """Return the facts of the files in `paths`, a mapping of name to path."""
    stats = {name: path.stat() for name, path in paths.items()}
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()]


def tensors_in(path: Path, name: str | None = None) -> Mapping[str, Any]:
    """Return the header entry of each tensor of a safetensors file, by its name; raises `LoadError`.

    `name` is the name of the file in error texts.
    """
    name = name or path.name
    size = _size(path, name)
    start = _start(path, name)
    # A header length of 640 begins with the bytes of a pickle, but the JSON object after it differs.
    if start.startswith(PICKLE_STARTS) and start[8:9] != b"{":
        raise LoadError(
            f"{name} is a pickle with the name of a safetensors file, and pickles are not read:"
            " choose a revision or a repository that has safetensors"
        )
    num_bytes = int.from_bytes(start[:8], "little")
    if len(start) < 8 or not 2 <= num_bytes <= MAX_HEADER_BYTES:
        raise LoadError(f"{name} is not a safetensors file (its header is missing): {AGAIN}")
    if 8 + num_bytes > size:
        raise LoadError(f"{name} is truncated in its header: {AGAIN}")
    header = _header(path, name, num_bytes)
    tensors = {key: value for key, value in header.items() if key != "__metadata__"}
    try:
        end = max((int(one["data_offsets"][1]) for one in tensors.values()), default=0)
        unknown = [(key, one["dtype"]) for key, one in tensors.items() if one["dtype"] not in DTYPES]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise LoadError(f"{name} has a broken header ({type(error).__name__}): {AGAIN}") from error
    if unknown:
        raise LoadError(
            f"{name}: {unknown[0][0]} has the dtype {unknown[0][1]!r}, which safetensors does not support:"
            f" {AGAIN}, or choose a revision that has float32, float16 or bfloat16"
        )
    if 8 + num_bytes + end != size:
        what = "is truncated" if size < 8 + num_bytes + end else "is too long"
        raise LoadError(f"{name} {what}: it has {size} bytes of {8 + num_bytes + end}: {AGAIN}")
    if not tensors:
        raise LoadError(f"{name} has no tensors: {AGAIN}")
    return tensors


def check_gguf(path: Path) -> None:
    """Raise `LoadError` for a file that does not start with the bytes of GGUF."""
    _size(path, path.name)
    if not _start(path, path.name).startswith(b"GGUF"):
        raise LoadError(f"{path.name} is not a GGUF file: {AGAIN}")


def read_object(path: Path, name: str | None = None) -> dict[str, Any]:
    """Return the object in a JSON file; raises `LoadError`, which names the file."""
    name = name or path.name
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LoadError(f"there is no {name}: {AGAIN}") from error
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise LoadError(f"{name} is not JSON ({type(error).__name__}: {said}): {AGAIN}") from error
    if not isinstance(document, dict):
        raise LoadError(f"{name} is not a JSON object: {AGAIN}")
    return document


def _header(path: Path, name: str, num_bytes: int) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            file.seek(8)
            header = json.loads(file.read(num_bytes))
    except (OSError, ValueError) as error:
        raise LoadError(f"{name} has a broken header ({type(error).__name__}): {AGAIN}") from error
    if not isinstance(header, dict):
        raise LoadError(f"{name} has a broken header: {AGAIN}")
    return header


def _check_text(path: Path, name: str) -> None:
    _size(path, name)
    _start(path, name)
    if name.endswith(CONFIGURATION):
        read_object(path, name)


def _size(path: Path, name: str) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise LoadError(f"{name} cannot be read ({error.strerror}): {AGAIN}") from error
    if not size:
        raise LoadError(f"{name} is empty: {AGAIN}")
    return size


def _start(path: Path, name: str) -> bytes:
    """Return the first bytes of a file; raises `LoadError` for a Git LFS pointer or a web page."""
    try:
        with path.open("rb") as file:
            start = file.read(START_BYTES)
    except PermissionError as error:
        raise LoadError(f"{name} cannot be read: give the worker's user permission to read it") from error
    except OSError as error:
        raise LoadError(f"{name} cannot be read ({error.strerror}): {AGAIN}") from error
    if start.startswith(LFS_POINTER):
        raise LoadError(
            f"{name} is a Git LFS pointer and not the file itself: run `git lfs pull` in the clone,"
            " or fetch it with `hf download`"
        )
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise LoadError(
            f"{name} is a web page and not the file itself: fetch it with `hf download`, or from the address"
            " with `resolve` instead of `blob`"
        )
    return start
