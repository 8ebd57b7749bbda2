"""From a folder of weights, a single file, or a hub id, to a diffusers pipeline on its device, ready to draw.

Owns which files are read, in which dtype, and what each broken one is called. It knows nothing of engines,
requests and self-tests.
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
from engine.loading.failures import check_whole, failure
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
from engine.loading.optimization import AS_IT_IS, Optimization, optimized
from engine.loading.quantized_weights import check_quantization, is_quantized
from engine.loading.replaced_components import Part, Reading, file_of, read_component
from engine.loading.scheduler_overrides import AS_PUBLISHED, SchedulerOverrides, overridden
from engine.loading.single_file import check_suffix, components_in, read_single_file
from engine.loading.textual_inversions import TextualInversion, teach
from engine.loading.weight_files import FileFacts, check_files, facts_of, read_object, tensors_in
from engine.pipelines.components import denoiser_among
from engine.pipelines.pipeline_model import LEFT_OUT, not_given

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# diffusers logs the end of a prompt that it cuts; we say so to the caller and log nobody's prompts.
logging.getLogger("diffusers.pipelines").setLevel(logging.ERROR)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a pipeline comes from and how it is read; `revision` and `local_files_only` are a hub id's."""

    path: str
    revision: str | None = None
    local_files_only: bool = True
    variant: str | None = None  # which of several sets of weights, `fp16` for one
    dtype: str = "auto"  # one of `DTYPES`; auto: full precision on CPU, half on CUDA
    optimization: Optimization = AS_IT_IS
    scheduler: SchedulerOverrides = AS_PUBLISHED  # of the model's own scheduler
    weight_name: str | None = None  # of a single file in a folder or hub id
    config: Part | None = None  # the configuration of a single file, and what the file lacks
    vae: Part | None = None  # in the place of the model's own
    transformer: Part | None = None  # weights in the place of the model's own
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
    """The pipeline on `device`, and the files that it was read from; raises `LoadError`."""
    dtype = dtype_of(source.dtype, device)
    file = _single_file(source, hub)
    folder, layout, files = _configured(source, file, hub)
    pipeline_class = _pipeline_class(layout)
    left_out = not_given(pipeline_class)
    can_lack = pipeline_class._optional_components
    # Of several text encoders a model may say that it does without a later one, as Stable Diffusion 3 of T5.
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
        reading = replace(reading, variant=None)  # diffusers refuses one that no component has
    words = [(one.token, _vectors(one, source, hub)) for one in source.embeddings]
    facts += facts_of(dict(words))
    pipeline = _read(pipeline_class, reading, file, given)
    teach(pipeline, words)
    return _finished(pipeline, source, device), facts


def _single_file(source: Source, hub: Hub) -> Path | None:
    """The one file that holds the model; None where it lies in a folder of diffusers' layout."""
    if source.weight_name:
        check_suffix(source.weight_name)
    file = file_of(source.own, hub, local_files_only=source.local_files_only)
    if file is None:
        if source.config is not None:
            raise LoadError("config: the model is a folder, which has its own: take the entry out")
        return None
    check_suffix(file.name)
    if not file.is_file():
        raise LoadError(f"there is no file {str(file)!r}: correct the path")
    if source.config is None:
        raise LoadError(
            "config: a single file needs its configuration: give a folder in diffusers' layout, or a hub id,"
            " of the model that it was made from"
        )
    tensors_in(file)
    return file


def _configured(source: Source, file: Path | None, hub: Hub) -> tuple[Path, Layout, list[str]]:
    """The folder that says what the model is made of, its layout, and which of its files are read."""
    part = source.own if file is None or source.config is None else source.config

    def spared(layout: Layout) -> Collection[str]:
        return {*source.replaced, *(components_in(file, layout) if file is not None else ())}

    try:
        folder = hub.folder(
            part.path,
            revision=part.revision,
            variant=source.variant,
            local_files_only=source.local_files_only,
            left_out=LEFT_OUT,
            spared=spared,
        )
        layout = read_layout(folder / INDEX, LEFT_OUT)
        names = names_in(folder)
        files = files_to_load(layout, names, source.variant, text_in(folder), spared(layout))
        check_files(folder, files)
        _check_quantization(folder, layout, source.replaced)
    except LoadError as error:
        held = "" if file is None else f"config: from {part.place}, for what {file.name} does not hold: "
        raise LoadError(f"{held}{failure(error, {})}") from error
    if beside := not_read(layout, names, files):
        logger.info("%s: beside what is read lie %s", part.place, ", ".join(beside))
    return folder, layout, files


def _check_quantization(folder: Path, layout: Layout, replaced: Collection[str]) -> None:
    for name, (_, class_name) in layout.classes.items():
        config = folder / name / "config.json"
        if name not in replaced and config.is_file():
            check_quantization(f"its {name} ({class_name})", read_object(config, f"{name}/config.json"))


def _vectors(word: TextualInversion, source: Source, hub: Hub) -> Path:
    try:
        return hub.weights(
            word.path,
            revision=word.revision,
            weight_name=word.weight_name,
            local_files_only=source.local_files_only,
        )
    except LoadError as error:
        raise LoadError(f"embeddings: {word.token!r}: {error}") from error


def _pipeline_class(layout: Layout) -> Any:
    """diffusers' class that the model is for."""
    if not hasattr(diffusers, layout.pipeline):
        raise LoadError(
            f"it is a {layout.pipeline}, which diffusers {diffusers.__version__} does not have:"
            " install a diffusers that has it"
        )
    return getattr(diffusers, layout.pipeline)


def _check_classes(layout: Layout) -> None:
    """Raise `LoadError` for a component of a class that the installed libraries do not have."""
    for name, (library, class_name) in layout.classes.items():
        module = diffusers if library == "diffusers" else transformers
        if not hasattr(module, class_name):
            raise LoadError(
                f"its {name} is a {class_name}, which {library} {module.__version__} does not have:"
                f" choose a revision that was made for it, or install a {library} that has it"
            )


def _needed(pipeline_class: Any, spared: Collection[str]) -> list[str]:
    """The components that the pipeline cannot be built without."""
    parameters = inspect.signature(pipeline_class.__init__).parameters.values()
    return [
        one.name
        for one in parameters
        if one.default is one.empty and one.name != "self" and one.name not in spared
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
                # safetensors only, and no code comes with a model, whoever made it.
                pipeline = pipeline_class.from_pretrained(
                    reading.folder,
                    dtype=reading.dtype,
                    variant=variant,
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    **given,
                )
    except Exception as error:  # out of the libraries, from a strange value or a broken file
        raise failure(error, layout.classes) from error
    check_whole(pipeline.components)
    return pipeline


def _finished(pipeline: Any, source: Source, device: torch.device) -> Any:
    """The pipeline on its device, as its catalogue entry wants it."""
    name = denoiser_among(list(pipeline.components)) or ""
    if source.optimization.quantization != "none" and is_quantized(pipeline.components.get(name)):
        raise LoadError("quantization: its weights were published quantized: set it to 'none'")
    if source.scheduler != AS_PUBLISHED:
        pipeline.scheduler = overridden(pipeline.scheduler, source.scheduler)
    return optimized(make_ready(pipeline), source.optimization, device)


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; `auto` is full precision on CPU, half on CUDA.

    Not yet seen on a GPU: `make test-gpu` prints what each dtype does there.
    """
    if name != "auto":
        if name not in DTYPES:
            raise LoadError(f"dtype: {name!r} is not one of auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    # GPUs before Ampere only emulate bf16, many times slower than they compute in fp16.
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
