"""Reads a diffusers pipeline from a folder, a single file or a hub id onto its device.

Owns which files are read, in which dtype, and the errors for broken ones. It does not know engines, requests
or self-tests.
"""

import inspect
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from engine.errors import LoadError
from engine.loading.failures import check_complete, failure
from engine.loading.hub import Hub, names_in, text_in
from engine.loading.layout import (
    INDEX,
    Incomplete,
    Layout,
    check_components,
    files_to_load,
    not_read,
    read_layout,
)
from engine.loading.loaded_pipeline import make_ready
from engine.loading.missing_weights import none_missing
from engine.loading.optimization import NO_OPTIMIZATION, Optimization, optimized
from engine.loading.quantized_weights import check_quantization, is_quantized
from engine.loading.replaced_components import Part, Reading, file_of, read_component
from engine.loading.scheduler_overrides import AS_PUBLISHED, SchedulerOverrides, overridden
from engine.loading.single_file import check_suffix, components_in, read_single_file
from engine.loading.textual_inversions import TextualInversion, load_textual_inversions
from engine.loading.weight_files import FileFacts, check_files, facts_of, read_object, tensors_in
from engine.pipelines.components import denoiser_among
from engine.pipelines.pipeline_model import LEFT_OUT, not_given

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# diffusers logs the text that it truncates; we warn the caller instead, and never log prompts.
logging.getLogger("diffusers.pipelines").setLevel(logging.ERROR)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a pipeline comes from and how it is read; `revision` and `local_files_only` are for hub ids."""

    path: str
    revision: str | None = None
    local_files_only: bool = True
    variant: str | None = None  # one of several sets of weights, such as `fp16`
    dtype: str = "auto"  # one of `DTYPES`; auto: full precision on CPU, half on CUDA
    optimization: Optimization = NO_OPTIMIZATION
    scheduler: SchedulerOverrides = AS_PUBLISHED  # applied to the model's own scheduler
    weight_name: str | None = None  # name of a single file in a folder or hub id
    config: Part | None = None  # for a single file: its configuration and the components that it lacks
    vae: Part | None = None  # replaces the model's own
    transformer: Part | None = None  # weights that replace the model's own
    embeddings: tuple[TextualInversion, ...] = ()

    @property
    def own(self) -> Part:
        """The model itself."""
        return Part(self.path, self.revision, self.weight_name)

    @property
    def replaced(self) -> dict[str, Part]:
        """The components that come from elsewhere."""
        parts = {"vae": self.vae, "transformer": self.transformer}
        return {name: part for name, part in parts.items() if part is not None}


def read_pipeline(source: Source, device: torch.device, hub: Hub) -> tuple[Any, FileFacts]:
    """Return the pipeline on `device` and the files that it was read from; raises `LoadError`."""
    dtype = dtype_of(source.dtype, device)
    file = _single_file(source, hub)
    folder, layout, files = _configured(source, file, hub)
    pipeline_class = _pipeline_class(layout)
    left_out = not_given(pipeline_class)
    can_lack = pipeline_class._optional_components
    # A model can lack its second or third text encoder if its index says so: Stable Diffusion 3 without T5.
    further = [name for name in layout.absent if name[-1].isdigit()]
    try:
        check_components(layout, _needed(pipeline_class, {*left_out, *can_lack, *further}))
    except Incomplete as error:
        raise failure(error, layout.classes) from error
    _check_classes(layout)
    facts = facts_of({name: folder / name for name in files})
    given: dict[str, Any] = {
        **dict.fromkeys(name for name in (*layout.absent, *can_lack) if name not in layout.components),
        **left_out,
    }
    reading = Reading(hub, folder, layout, dtype, source.variant, source.local_files_only)
    for name, part in source.replaced.items():
        given[name], more = read_component(name, part, reading)
        facts += more
    if file is not None:
        facts += facts_of({file.name: file})
    if source.variant and not any(f".{source.variant}" in name for name in files):
        reading = replace(reading, variant=None)  # diffusers refuses a variant that no component has
    embeddings = [(one.token, _embedding_file(one, source, hub)) for one in source.embeddings]
    facts += facts_of(dict(embeddings))
    pipeline = _read(pipeline_class, reading, file, given)
    load_textual_inversions(pipeline, embeddings)
    return _finished(pipeline, source, device), facts


def _single_file(source: Source, hub: Hub) -> Path | None:
    """Return the single file of a model; None if the model is a folder in diffusers' layout."""
    if source.weight_name:
        check_suffix(source.weight_name)
    file = file_of(source.own, hub, local_files_only=source.local_files_only)
    if file is None:
        if source.config is not None:
            raise LoadError("config: the model is a folder with its own configuration: remove the entry")
        return None
    check_suffix(file.name)
    if not file.is_file():
        raise LoadError(f"there is no file {str(file)!r}: correct the path")
    if source.config is None:
        raise LoadError(
            "config: a single file needs a configuration: set it to a folder in diffusers' layout, or a hub"
            " id, of the model that the file was made from"
        )
    tensors_in(file)
    return file


def _configured(source: Source, file: Path | None, hub: Hub) -> tuple[Path, Layout, list[str]]:
    """Return the folder with the model's configuration, its layout, and the names of the files to read."""
    part = source.own if file is None or source.config is None else source.config

    def config_only(layout: Layout) -> Collection[str]:
        return {*source.replaced, *(components_in(file, layout) if file is not None else ())}

    try:
        folder = hub.folder(
            part.path,
            revision=part.revision,
            variant=source.variant,
            local_files_only=source.local_files_only,
            left_out=LEFT_OUT,
            config_only=config_only,
        )
        layout = read_layout(folder / INDEX, LEFT_OUT)
        names = names_in(folder)
        files = files_to_load(layout, names, source.variant, text_in(folder), config_only(layout))
        check_files(folder, files)
        _check_quantization(folder, layout, source.replaced)
    except LoadError as error:
        purpose = "" if file is None else f"config: from {part.place}, for components not in {file.name}: "
        raise LoadError(f"{purpose}{failure(error, {})}") from error
    if unused := not_read(layout, names, files):
        logger.info("%s: weights that are not read: %s", part.place, ", ".join(unused))
    return folder, layout, files


def _check_quantization(folder: Path, layout: Layout, replaced: Collection[str]) -> None:
    for name, (_, class_name) in layout.classes.items():
        config = folder / name / "config.json"
        if name not in replaced and config.is_file():
            check_quantization(f"its {name} ({class_name})", read_object(config, f"{name}/config.json"))


def _embedding_file(embedding: TextualInversion, source: Source, hub: Hub) -> Path:
    try:
        return hub.weights(
            embedding.path,
            revision=embedding.revision,
            weight_name=embedding.weight_name,
            local_files_only=source.local_files_only,
        )
    except LoadError as error:
        raise LoadError(f"embeddings: {embedding.token!r}: {error}") from error


def _pipeline_class(layout: Layout) -> Any:
    """Return diffusers' class of the model."""
    if not hasattr(diffusers, layout.pipeline):
        raise LoadError(
            f"it is a {layout.pipeline}, which diffusers {diffusers.__version__} does not have:"
            " install a diffusers that has it"
        )
    return getattr(diffusers, layout.pipeline)


def _check_classes(layout: Layout) -> None:
    """Raise `LoadError` for a component whose class the installed libraries do not have."""
    for name, (library, class_name) in layout.classes.items():
        module = diffusers if library == "diffusers" else transformers
        if not hasattr(module, class_name):
            raise LoadError(
                f"its {name} is a {class_name}, which {library} {module.__version__} does not have:"
                f" choose a revision that was made for it, or install a {library} that has it"
            )


def _needed(pipeline_class: Any, optional: Collection[str]) -> list[str]:
    """Return the components that the pipeline cannot be built without, except those in `optional`."""
    parameters = inspect.signature(pipeline_class.__init__).parameters.values()
    return [
        one.name
        for one in parameters
        if one.default is one.empty and one.name != "self" and one.name not in optional
    ]


def _read(pipeline_class: Any, reading: Reading, file: Path | None, given: Mapping[str, Any]) -> Any:
    layout, variant = reading.layout, reading.variant
    try:
        with none_missing():
            if file is not None:
                held = {*components_in(file, layout), *given}
                pipeline = read_single_file(
                    pipeline_class, file, reading.folder, layout, held, given,
                    dtype=reading.dtype, variant=variant,
                )  # fmt: skip
            else:
                # Only safetensors are read, and code from a model is never run.
                pipeline = pipeline_class.from_pretrained(
                    reading.folder,
                    dtype=reading.dtype,
                    variant=variant,
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    **given,
                )
    except Exception as error:  # the libraries may raise any exception for a broken file
        raise failure(error, layout.classes) from error
    check_complete(pipeline.components)
    return pipeline


def _finished(pipeline: Any, source: Source, device: torch.device) -> Any:
    """Apply the settings of the catalogue entry to the pipeline and move it to its device."""
    name = denoiser_among(list(pipeline.components)) or ""
    if source.optimization.quantization != "none" and is_quantized(pipeline.components.get(name)):
        raise LoadError("quantization: its weights were published quantized: set it to 'none'")
    if source.scheduler != AS_PUBLISHED:
        pipeline.scheduler = overridden(pipeline.scheduler, source.scheduler)
    return optimized(make_ready(pipeline), source.optimization, device)


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of that name; `auto` is full precision on CPU and half precision on CUDA.

    Not tried on a GPU yet: `make test-gpu` prints the result of each dtype.
    """
    if name != "auto":
        if name not in DTYPES:
            raise LoadError(f"dtype: {name!r} is not one of auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    # GPUs before Ampere emulate bf16, many times slower than fp16.
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
