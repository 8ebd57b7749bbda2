"""What a model holds in diffusers' layout, read from names alone before anything is loaded or downloaded.

Owns the choice of files: weights as safetensors, configuration, vocabularies, and nothing that could run.
It works on a folder's names and on a hub listing alike, and knows neither torch nor the network.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.errors import LoadError

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
WITHOUT_WEIGHTS = ("tokenizer", "scheduler")
"""Beginnings of the names of components without weights; others are known by their class."""
CONFIGURATIONS: Mapping[str, tuple[str, ...]] = {
    "Scheduler": ("scheduler_config.json",),
    "Guidance": ("guider_config.json",),
    "Processor": ("preprocessor_config.json", "processor_config.json"),
    "FeatureExtractor": ("preprocessor_config.json",),
}
"""By a part of a class's name: the configuration that its components have, which are without weights."""
WITHOUT_VOCABULARY = ("ByT5Tokenizer",)
"""Tokenizers that read bytes."""
VOCABULARIES = (
    {"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"vocab.txt"}, {"spiece.model"}, {"tokenizer.model"},
)  # fmt: skip
PLAIN_SUFFIXES = (".json", ".txt", ".model")
SINGLE_OR_SHARD = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<one>\w+))?(?:-\d+-of-(?P<shards>\d+))?"
    r"(?:\.(?P<other>\w+))?\.safetensors"
)
SHARD_INDEX = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<one>\w+))?\.safetensors(?:\.(?P<two>(?!index)\w+))?"
    r"\.index(?:\.(?P<three>\w+))?\.json"
)
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5")


class Incomplete(LoadError):
    """Files or components of a model are missing; the message has no remedy yet."""


@dataclass(frozen=True)
class Layout:
    """A `model_index.json`: the class that reads the model, and its components that are loaded."""

    pipeline: str
    components: tuple[str, ...]
    absent: tuple[str, ...]  # those that the pipeline could have and this model has not
    classes: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # of each component: library, class

    def without(self, names: Collection[str]) -> "Layout":
        """The same without these components, which are read from elsewhere."""
        return replace(
            self,
            components=tuple(one for one in self.components if one not in names),
            classes={name: one for name, one in self.classes.items() if name not in names},
        )


ReadText = Callable[[str], str]
"""The text of one of the names, for the small files that say which others are read."""


def read_layout(index: Path, left_out: Collection[str]) -> Layout:
    """Read a `model_index.json`, without the components in `left_out`; raises `LoadError`."""
    try:
        text = index.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise LoadError(
            f"there is no {INDEX}, so it is not in diffusers' layout: choose the folder of a whole pipeline"
        ) from error
    except (OSError, ValueError) as error:
        raise LoadError(_no_index(error)) from error
    return layout_of(text, left_out)


def layout_of(text: str, left_out: Collection[str]) -> Layout:
    """The text of a `model_index.json`, without the components in `left_out`; raises `LoadError`."""
    try:
        document = json.loads(text)
        entries = {
            name: value
            for name, value in document.items()
            if isinstance(value, list) and len(value) == 2 and name not in left_out
        }
        pipeline = str(document["_class_name"])
    except KeyError as error:
        raise LoadError(
            f"{INDEX} names no pipeline (it has no {error}), so it is not one of diffusers':"
            " choose the folder of a whole pipeline"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise LoadError(_no_index(error)) from error
    for name, (library, _) in entries.items():
        if library is not None and library not in LIBRARIES:
            raise LoadError(
                f"its {name} needs code of its own ({library!r}), and no code is loaded:"
                " choose a model that needs none"
            )
    present = {
        name: (str(library), str(kind)) for name, (library, kind) in entries.items() if library is not None
    }
    return Layout(pipeline, tuple(present), tuple(name for name in entries if name not in present), present)


def _no_index(error: Exception) -> str:
    said = " ".join(str(error).split())
    return f"{INDEX} is not one of diffusers' ({type(error).__name__}: {said}): fetch it again"


def check_components(layout: Layout, needed: Collection[str]) -> None:
    """Raise `Incomplete` naming those of `needed` that the model comes without."""
    missing = [name for name in needed if name not in layout.components]
    if missing:
        raise Incomplete(f"it has no {' and no '.join(missing)}, which its pipeline needs")


def files_to_load(
    layout: Layout,
    names: Collection[str],
    variant: str | None,
    read: ReadText,
    without_weights: Collection[str] = (),
) -> list[str]:
    """Those of `names` that are read; raises `LoadError` saying what is missing.

    `read` is asked for the index of weights that lie in shards: it says which of them belong together. Of the
    components in `without_weights` the configuration alone is read.
    """
    files = [INDEX]
    for component in layout.components:
        inside = sorted(name for name in names if name.rpartition("/")[0] == component)
        library, class_name = layout.classes.get(component, ("diffusers", ""))
        has_weights = _check_plain(component, class_name, {name.rpartition("/")[2] for name in inside})
        files += [name for name in inside if name.endswith(PLAIN_SUFFIXES)]
        if has_weights and component not in without_weights:
            files += _weights(component, inside, variant, read, prefers_single=library == "transformers")
    return files


def files_of_component(
    names: Collection[str], component: str, variant: str | None, read: ReadText
) -> list[str]:
    """The configuration, first, and the weights of one of diffusers' components that is published alone.

    They lie beside each other, at the root or in a folder of the component's name.
    """
    folder = next((one for one in ("", component) if f"{one}/config.json".lstrip("/") in names), None)
    if folder is None:
        raise Incomplete("there is no config.json, so it is not in diffusers' layout")
    inside = sorted(name for name in names if name.rpartition("/")[0] == folder)
    weights = _weights(component, inside, variant, read, prefers_single=False)
    return [f"{folder}/config.json".lstrip("/"), *weights]


def not_read(layout: Layout, names: Collection[str], files: Collection[str]) -> list[str]:
    """Weights that lie beside those that are read: another variant, or the same in another form."""
    return sorted(
        name
        for name in names
        if name.endswith(".safetensors") and name.partition("/")[0] in layout.components and name not in files
    )


def _check_plain(component: str, class_name: str, names: Collection[str]) -> bool:
    """Whether a component has weights besides; raises `LoadError` where a cache has stopped half-way.

    What is looked for is what no component of its kind can be read without.
    """
    if component.startswith("tokenizer") or "Tokenizer" in class_name:
        has_vocabulary = any(vocabulary <= set(names) for vocabulary in VOCABULARIES)
        if not has_vocabulary and class_name not in WITHOUT_VOCABULARY:
            raise Incomplete(f"its {component} has no vocabulary")
        return False
    kind = next((kind for kind in CONFIGURATIONS if kind in class_name), None)
    if component.startswith("scheduler"):
        kind = "Scheduler"
    configurations = CONFIGURATIONS[kind] if kind else ("config.json",)
    if not any(name in names for name in configurations):
        raise Incomplete(f"its {component} has no configuration ({configurations[0]})")
    return kind is None


def _weights(
    component: str, inside: list[str], variant: str | None, read: ReadText, *, prefers_single: bool
) -> list[str]:
    """The weights of one component: the variant if it has that, else the plain ones, all shards or none.

    Where one file lies beside shards of the same weights, transformers reads the file, diffusers the shards.
    """
    singles: dict[str | None, str] = {}
    shards: dict[str | None, list[str]] = {}
    indices: dict[str | None, str] = {}
    for name in inside:
        base = name.rpartition("/")[2]
        if found := SINGLE_OR_SHARD.fullmatch(base):
            own = found["one"] or found["other"]
            if found["shards"]:
                shards.setdefault(own, []).append(name)
            else:
                singles[own] = name
        elif found := SHARD_INDEX.fullmatch(base):
            indices[found["one"] or found["two"] or found["three"]] = name
    for choice in dict.fromkeys((variant, None)):
        if choice in singles and (prefers_single or choice not in indices):
            return [singles[choice]]
        if choice in indices:
            return _named_by_index(component, indices[choice], inside, read)
        if choice in shards:
            raise Incomplete(_without_index(component, shards[choice]))
    if by_variant := {*singles, *shards}:
        known = ", ".join(sorted(map(str, by_variant)))
        raise LoadError(f"its {component} comes only as variant {known}: set `variant`")
    pickles = [name for name in inside if name.endswith(PICKLES)]
    if pickles:
        raise Incomplete(f"weights are read as safetensors only, and its {component} has only {pickles[0]}")
    raise Incomplete(f"its {component} has no safetensors")


def _named_by_index(component: str, index: str, inside: list[str], read: ReadText) -> list[str]:
    """The shards that their index names, and no other that lies beside them."""
    folder = index.rpartition("/")[0]
    try:
        named = json.loads(read(index))["weight_map"].values()
        wanted = sorted({f"{folder}/{name}".lstrip("/") for name in named})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise LoadError(
            f"its {component}: {index} is no index of shards ({type(error).__name__}): fetch it again"
        ) from error
    missing = [name for name in wanted if name not in inside]
    if missing:
        there = f"{len(wanted) - len(missing)} of {len(wanted)} shards"
        raise Incomplete(f"its {component} is incomplete: {there}, {index} names {missing[0]} too")
    if not wanted:
        raise LoadError(f"its {component} is incomplete: {index} names no shards: fetch it again")
    return wanted


def _without_index(component: str, shards: list[str]) -> str:
    found = re.search(r"-of-(\d+)", shards[0])
    total = int(found[1]) if found else 0
    if len(shards) < total:
        return f"its {component} is incomplete: {len(shards)} of {total} shards, and no index that names them"
    return (
        f"its {component} is incomplete: it lies in shards, and there is no index (…safetensors.index.json)"
    )
