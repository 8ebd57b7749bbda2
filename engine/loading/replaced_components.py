"""Reads components that replace a model's own: other weights for its denoiser, or another autoencoder.

Owns which classes can replace a component, and whether the replacement fits the model. It does not know how
the other components are read, nor how a step uses the replacement.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from engine.errors import LoadError
from engine.loading.failures import check_complete, failure
from engine.loading.hub import Hub, names_in, text_in
from engine.loading.layout import Layout, files_of_component
from engine.loading.missing_weights import none_missing
from engine.loading.quantized_weights import check_package, check_quantization
from engine.loading.side_multiple import pixels_per_latent
from engine.loading.single_file import is_weights
from engine.loading.weight_files import FileFacts, check_files, check_gguf, facts_of, read_object, tensors_in

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL")
"""Classes that can replace an `AutoencoderKL`, because they share its latents."""


@dataclass(frozen=True)
class Part:
    """Where a component or a model comes from: a local file or folder, or a hub id at a commit."""

    path: str
    revision: str | None = None
    weight_name: str | None = None  # name of a file in a folder or a hub id

    @property
    def place(self) -> str:
        """Path, file and revision for error texts."""
        name = f" ({self.weight_name})" if self.weight_name else ""
        return f"{self.path!r}{name}" + (f" at {self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Reading:
    """How the components of one model are read."""

    hub: Hub
    folder: Path  # contains at least the model's configuration
    layout: Layout
    dtype: torch.dtype
    variant: str | None
    local_files_only: bool


def read_component(name: str, part: Part, reading: Reading) -> tuple[Any, FileFacts]:
    """Return the component and the files that it was read from; raises `LoadError` with its source."""
    try:
        if name not in reading.layout.classes:
            raise LoadError(f"a {reading.layout.pipeline} has no {name}: remove the entry")
        file = _file(part, reading)
        with none_missing():
            if file is not None:
                found, names = _read_file(name, file, reading), [file]
            else:
                found, names = _read_folder(name, part, reading)
        check_complete({name: found})
        if name == "vae":
            _check_fit(found, reading)
    except Exception as error:
        raise LoadError(f"{name}: from {part.place}: {failure(error, reading.layout.classes)}") from error
    return found, facts_of({f"{name}: {one.name}": one for one in names})


def file_of(part: Part, hub: Hub, *, local_files_only: bool) -> Path | None:
    """Return the single file of a part, local or from a hub; None for a folder. Raises `LoadError`."""
    if part.weight_name and not Path(part.path).is_dir():
        return hub.file(
            part.path, revision=part.revision, name=part.weight_name, local_files_only=local_files_only
        )
    if part.weight_name:
        return Path(part.path) / part.weight_name
    return Path(part.path) if is_weights(part.path) else None


def _file(part: Part, reading: Reading) -> Path | None:
    file = file_of(part, reading.hub, local_files_only=reading.local_files_only)
    if file is not None and not file.is_file():
        raise LoadError(f"there is no file {str(file)!r}: correct the path")
    return file


def _read_file(name: str, file: Path, reading: Reading) -> Any:
    kind = _class(reading.layout.classes[name][1])
    if not hasattr(kind, "from_single_file"):
        raise LoadError(f"diffusers cannot read a {kind.__name__} from a single file: use a folder")
    how: dict[str, Any] = {"config": str(reading.folder), "subfolder": name, "local_files_only": True}
    if file.suffix == ".gguf":
        if name == "vae":
            raise LoadError("an autoencoder is read as safetensors only: choose a .safetensors file")
        check_gguf(file)
        check_package(f"its {name}", "gguf")
        how["quantization_config"] = diffusers.GGUFQuantizationConfig(compute_dtype=reading.dtype)
    elif file.suffix == ".safetensors":
        tensors_in(file)
    else:
        raise LoadError("weights are read as safetensors or GGUF only: choose a .safetensors or .gguf file")
    return kind.from_single_file(str(file), torch_dtype=reading.dtype, **how)


def _read_folder(name: str, part: Part, reading: Reading) -> tuple[Any, list[Path]]:
    folder = reading.hub.component(
        part.path,
        revision=part.revision,
        component=name,
        variant=reading.variant,
        local_files_only=reading.local_files_only,
    )
    names = files_of_component(names_in(folder), name, reading.variant, text_in(folder))
    check_files(folder, names)
    config = read_object(folder / "config.json")
    kind, expected = str(config.get("_class_name")), reading.layout.classes[name][1]
    fitting = AUTOENCODERS if name == "vae" and expected in AUTOENCODERS else (expected,)
    if kind not in fitting:
        raise LoadError(f"it is a {kind}, and the model needs {' or '.join(fitting)}: choose one of these")
    check_quantization(f"its {name} ({kind})", config)
    has_variant = any(f".{reading.variant}" in one for one in names)
    found = _class(kind).from_pretrained(
        folder,
        torch_dtype=reading.dtype,
        variant=reading.variant if has_variant else None,
        use_safetensors=True,
        local_files_only=True,
    )
    return found, [folder / one for one in names]


def _class(name: str) -> Any:
    return getattr(diffusers, name)


def _check_fit(vae: Any, reading: Reading) -> None:
    """Raise `LoadError` for an autoencoder whose latents differ from those of the model's own."""
    own = read_object(reading.folder / "vae" / "config.json", "vae/config.json")
    given: Mapping[str, Any] = vae.config
    named = type(vae).__name__
    channels = [one.get("latent_channels", 4) for one in (given, own)]
    if channels[0] != channels[1]:
        raise LoadError(
            f"its {named} has latents of {channels[0]} channels, and those of the model have {channels[1]}:"
            " choose one that was made for this model"
        )
    factors = [pixels_per_latent("vae", {**one, **_lists(one)}) for one in (given, own)]
    if factors[0] != factors[1]:
        raise LoadError(
            f"a latent of its {named} is {factors[0]} pixels wide, and a latent of the model {factors[1]}:"
            " choose one that was made for this model"
        )


def _lists(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a loaded configuration with its tuples as lists, as in its file."""
    return {name: list(value) for name, value in config.items() if isinstance(value, tuple)}
