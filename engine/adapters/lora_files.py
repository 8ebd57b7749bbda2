"""Finds the files of a model's adapters, each a safetensors file on this disk or on a hub.

Owns the adapter entry of the catalogue, and the rule that a missing file fails only the jobs that ask for it.
It reads no weights.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from engine.adapters.adapters import Locate
from engine.errors import LoadError
from engine.loading.hub import Hub
from engine.loading.optimization import Optimization

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoraSpec:
    """An adapter of a model: its name in requests, and where its safetensors file comes from."""

    name: str
    path: str  # a file, a folder, or a hub id with its `revision`
    revision: str | None = None
    weight_name: str | None = None  # the file to use in a folder or a hub id


def located(
    adapters: Iterable[LoraSpec], optimization: Optimization, hub: Hub, local_files_only: bool
) -> dict[str, Locate]:
    """Return a function for each adapter that finds its file; fetches hub files unless `local_files_only`.

    A missing file is logged, and fails the jobs that ask for the adapter. Raises `LoadError` for an
    optimization that cannot be combined with adapters.
    """
    for entry, is_set in (
        ("compile", optimization.compile),
        ("cpu_offload", optimization.cpu_offload == "sequential"),
    ):
        if is_set:
            raise LoadError(f"loras: they cannot be combined with {entry}: remove one of the two")
    files: dict[str, Locate] = {}
    for lora in adapters:
        find = partial(hub.weights, lora.path, revision=lora.revision, weight_name=lora.weight_name)
        files[lora.name] = partial(find, local_files_only=True)
        try:
            find(local_files_only=local_files_only)
        except LoadError as error:
            logger.warning("adapter %r from %r: %s: jobs that use it will fail", lora.name, lora.path, error)
    return files
