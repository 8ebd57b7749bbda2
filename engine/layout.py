"""What a model holds in diffusers' layout, read from names alone before anything is loaded or downloaded.

Owns the choice of files: weights as safetensors, configuration, vocabularies, and nothing that could run.
It works on a folder's names and on a hub listing alike, and knows neither torch nor the network.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.errors import LoadError

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
WITHOUT_WEIGHTS = ("tokenizer", "scheduler")
VOCABULARIES = (
    {"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"vocab.txt"}, {"spiece.model"}, {"tokenizer.model"},
)  # fmt: skip
PLAIN_SUFFIXES = (".json", ".txt", ".model")
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5")


@dataclass(frozen=True)
class Layout:
    """A `model_index.json`: the class that reads the model, and its components that are loaded."""

    pipeline: str
    components: tuple[str, ...]
    absent: tuple[str, ...]  # those that the pipeline could have and this model has not


def read_layout(index: Path, left_out: Collection[str]) -> Layout:
    """Read a `model_index.json`, without the components in `left_out`; raises `LoadError`."""
    try:
        document = json.loads(index.read_text(encoding="utf-8"))
        entries = {
            name: value
            for name, value in document.items()
            if isinstance(value, list) and len(value) == 2 and name not in left_out
        }
        pipeline = str(document["_class_name"])
    except FileNotFoundError as error:
        raise LoadError(f"there is no {INDEX}, so it is not in diffusers' layout") from error
    except (ValueError, KeyError, AttributeError) as error:
        raise LoadError(f"{INDEX} is not one of diffusers' ({type(error).__name__}: {error})") from error
    for name, (library, _) in entries.items():
        if library is not None and library not in LIBRARIES:
            raise LoadError(f"its {name} needs code of its own ({library!r}), and no code is loaded")
    present = tuple(name for name, (library, _) in entries.items() if library is not None)
    return Layout(pipeline, present, tuple(name for name in entries if name not in present))


def check_pipeline(
    layout: Layout, expected: Collection[str], families: Mapping[str, Collection[str]]
) -> None:
    """Raise `LoadError` unless the model is for a pipeline class in `expected`; `families` names the rest."""
    if layout.pipeline in expected:
        return
    fitting = [family for family, pipelines in families.items() if layout.pipeline in pipelines]
    advice = f"set family = {fitting[0]!r}" if fitting else "no family here reads that"
    raise LoadError(f"it is a {layout.pipeline}, and its family needs a {' or a '.join(expected)}: {advice}")


def check_components(layout: Layout, needed: Collection[str]) -> None:
    """Raise `LoadError` naming those of `needed` that the model comes without."""
    missing = [name for name in needed if name not in layout.components]
    if missing:
        raise LoadError(f"it has no {' and no '.join(missing)}, which its family needs")


def files_to_load(layout: Layout, names: Collection[str], variant: str | None) -> list[str]:
    """Those of `names` that are read; raises `LoadError` saying what is missing."""
    files = [INDEX]
    for component in layout.components:
        inside = sorted(name for name in names if name.rpartition("/")[0] == component)
        _check_plain(component, {name.rpartition("/")[2] for name in inside})
        files += [name for name in inside if name.endswith(PLAIN_SUFFIXES)]
        if not component.startswith(WITHOUT_WEIGHTS):
            files += _weights(component, inside, variant)
    return files


def _check_plain(component: str, names: Collection[str]) -> None:
    """What no component of its kind can be read without: a cache can have stopped half-way."""
    if component.startswith("tokenizer"):
        if not any(vocabulary <= set(names) for vocabulary in VOCABULARIES):
            raise LoadError(f"its {component} has no vocabulary")
        return
    configuration = f"{component}_config.json" if component.startswith("scheduler") else "config.json"
    if configuration not in names:
        raise LoadError(f"its {component} has no configuration ({configuration})")


def _weights(component: str, inside: list[str], variant: str | None) -> list[str]:
    """The weights of one component: the variant if it has that, else the plain ones, all shards or none."""
    by_variant: dict[str | None, list[str]] = {}
    for name in inside:
        found = re.fullmatch(
            r"(?:diffusion_pytorch_model|model)(?:\.(?P<one>\w+))?(?:-\d+-of-(?P<shards>\d+))?"
            r"(?:\.(?P<other>\w+))?\.safetensors",
            name.rpartition("/")[2],
        )
        if found:
            by_variant.setdefault(found["one"] or found["other"], []).append(name)
    for choice in (variant, None):
        if files := by_variant.get(choice):
            shards = re.search(r"-of-(\d+)", files[0])
            if shards and len(files) != int(shards[1]):
                raise LoadError(f"its {component} is incomplete: {len(files)} of {int(shards[1])} shards")
            return files
    if by_variant:
        known = ", ".join(sorted(str(name) for name in by_variant))
        raise LoadError(f"its {component} comes only as variant {known}: set `variant`")
    pickles = [name for name in inside if name.endswith(PICKLES)]
    if pickles:
        raise LoadError(f"weights are read as safetensors only, and its {component} has only {pickles[0]}")
    raise LoadError(f"its {component} has no safetensors")
