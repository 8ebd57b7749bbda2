"""Chooses the files of a model in diffusers' layout by their names, before they are loaded or downloaded.

The files are weights as safetensors, configuration and vocabularies, and nothing executable. It works on the
names in a folder and in a hub listing alike, and knows neither torch nor the network.
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
"""Prefixes of the names of components without weights; others are recognized by their class."""
CONFIGURATIONS: Mapping[str, tuple[str, ...]] = {
    "Scheduler": ("scheduler_config.json",),
    "Guidance": ("guider_config.json",),
    "Processor": ("preprocessor_config.json", "processor_config.json"),
    "FeatureExtractor": ("preprocessor_config.json",),
}
"""Configuration files of components without weights, by a part of the component's class name."""
WITHOUT_VOCABULARY = ("ByT5Tokenizer",)
"""Tokenizers that need no vocabulary file because they read bytes."""
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
    """The contents of a `model_index.json`: the pipeline class and the components to load."""

    pipeline: str
    components: tuple[str, ...]
    absent: tuple[str, ...]  # components that the pipeline supports and this model lacks
    classes: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # component -> (library, class)

    def without(self, names: Collection[str]) -> "Layout":
        """Return the layout without these components, which are read from elsewhere."""
        return replace(
            self,
            components=tuple(one for one in self.components if one not in names),
            classes={name: one for name, one in self.classes.items() if name not in names},
        )


ReadText = Callable[[str], str]
"""Returns the text of a file by its name; called for the indexes that list other files."""


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
    """Parse the text of a `model_index.json`, without the components in `left_out`; raises `LoadError`."""
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
                f"its {name} needs code of its own ({library!r}), and code is never loaded from a model:"
                " choose a model without code"
            )
    present = {
        name: (str(library), str(kind)) for name, (library, kind) in entries.items() if library is not None
    }
    return Layout(pipeline, tuple(present), tuple(name for name in entries if name not in present), present)


def _no_index(error: Exception) -> str:
    said = " ".join(str(error).split())
    return f"{INDEX} is not one of diffusers' ({type(error).__name__}: {said}): fetch it again"


def check_components(layout: Layout, needed: Collection[str]) -> None:
    """Raise `Incomplete` for the components in `needed` that the model lacks."""
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
    """Return the names of the files to load; raises `LoadError` for a missing file.

    `read` is called for the index of sharded weights, which lists the shards. For the components in
    `without_weights` only the configuration is included.
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
    """Return the configuration, first, and the weights of a diffusers component that is published alone.

    Both are at the root or both are in a folder named after the component.
    """
    folder = next((one for one in ("", component) if f"{one}/config.json".lstrip("/") in names), None)
    if folder is None:
        raise Incomplete("there is no config.json, so it is not in diffusers' layout")
    inside = sorted(name for name in names if name.rpartition("/")[0] == folder)
    weights = _weights(component, inside, variant, read, prefers_single=False)
    return [f"{folder}/config.json".lstrip("/"), *weights]


def not_read(layout: Layout, names: Collection[str], files: Collection[str]) -> list[str]:
    """Return weights in the model's folders that are not loaded, such as another variant."""
    return sorted(
        name
        for name in names
        if name.endswith(".safetensors") and name.partition("/")[0] in layout.components and name not in files
    )


def _check_plain(component: str, class_name: str, names: Collection[str]) -> bool:
    """Return whether a component has weights; raises `Incomplete` if a file that its kind needs is missing.

    Files can be missing after a download that stopped half-way.
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
    """Return the weights of one component: of the variant if there is one, else the plain ones.

    If both a single file and shards of the same weights exist, transformers reads the file and diffusers the
    shards. Raises `Incomplete` if shards are missing.
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
    """Return the shards that the index lists, and no other file in the folder."""
    folder = index.rpartition("/")[0]
    try:
        named = json.loads(read(index))["weight_map"].values()
        wanted = sorted({f"{folder}/{name}".lstrip("/") for name in named})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise LoadError(
            f"its {component}: {index} is not an index of shards ({type(error).__name__}): fetch it again"
        ) from error
    missing = [name for name in wanted if name not in inside]
    if missing:
        there = f"{len(wanted) - len(missing)} of {len(wanted)} shards"
        raise Incomplete(f"its {component} is incomplete: {there}, {index} also lists {missing[0]}")
    if not wanted:
        raise LoadError(f"its {component} is incomplete: {index} lists no shards: fetch it again")
    return wanted


def _without_index(component: str, shards: list[str]) -> str:
    found = re.search(r"-of-(\d+)", shards[0])
    total = int(found[1]) if found else 0
    if len(shards) < total:
        return f"its {component} is incomplete: {len(shards)} of {total} shards, and no index that lists them"
    return f"its {component} is incomplete: its shards have no index (…safetensors.index.json)"
