"""Where the adapters of a model lie: each one safetensors file, here or on a hub.

Owns what an entry of the catalogue names, and that a missing one is found by the jobs that ask for it. It
reads no weights.
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
    """An adapter of a model: its name in requests, and where its one safetensors file comes from."""

    name: str
    path: str  # of a file, of a folder, or a hub id with its `revision`
    revision: str | None = None
    weight_name: str | None = None  # which file of a folder or a hub id


def located(
    loras: Iterable[LoraSpec], optimization: Optimization, hub: Hub, local_files_only: bool
) -> dict[str, Locate]:
    """How each is found, by its name; those of a hub are fetched now, unless `local_files_only`.

    One that is not there is for the jobs that ask for it to find, and for the log. `LoadError` is for what
    holds for all of them.
    """
    for entry, is_set in (
        ("compile", optimization.compile),
        ("cpu_offload", optimization.cpu_offload == "sequential"),
    ):
        if is_set:
            raise LoadError(f"loras: {entry} compiles or moves the layers that they change: leave one out")
    files: dict[str, Locate] = {}
    for lora in loras:
        find = partial(hub.weights, lora.path, revision=lora.revision, weight_name=lora.weight_name)
        files[lora.name] = partial(find, local_files_only=True)
        try:
            find(local_files_only=local_files_only)
        except LoadError as error:
            logger.warning("adapter %r from %r: %s: jobs that ask for it fail", lora.name, lora.path, error)
    return files
