"""From a folder of weights, or a hub id, to a diffusers pipeline on its device, ready to draw.

Owns which files are read, in which dtype, and what each broken one is called. It knows nothing of engines,
requests and self-tests.
"""

import inspect
import logging
import traceback
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from engine.attempt import translate
from engine.errors import LoadError, OutOfMemory
from engine.hub import Hub, names_in, text_in
from engine.layout import INDEX, Layout, check_components, files_to_load, read_layout
from engine.loaded_pipeline import make_ready
from engine.optimization import AS_IT_IS, Optimization, optimized
from engine.pipeline_model import LEFT_OUT, not_given
from engine.scheduler_overrides import AS_PUBLISHED, SchedulerOverrides, overridden

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# diffusers logs the end of a prompt that it cuts; we say so to the caller and log nobody's prompts.
logging.getLogger("diffusers.pipelines").setLevel(logging.ERROR)

FileFacts = list[tuple[str, int, int]]
"""Of every file that is read: its name, its bytes, and when it was last written (ns)."""


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


def read_pipeline(source: Source, device: torch.device, hub: Hub) -> tuple[Any, FileFacts]:
    """The pipeline on `device`, and the files that it was read from; raises `LoadError`."""
    folder = hub.folder(
        source.path,
        revision=source.revision,
        variant=source.variant,
        local_files_only=source.local_files_only,
        left_out=LEFT_OUT,
    )
    layout = read_layout(folder / INDEX, LEFT_OUT)
    pipeline_class = _pipeline_class(layout)
    left_out = not_given(pipeline_class)
    can_lack = pipeline_class._optional_components
    # Of several text encoders a model may say that it does without a later one, as Stable Diffusion 3 of T5.
    further = [name for name in layout.absent if name[-1].isdigit()]
    check_components(layout, _needed(pipeline_class, {*left_out, *can_lack, *further}))
    _check_classes(layout)
    files = files_to_load(layout, names_in(folder), source.variant, text_in(folder))
    stats = {name: (folder / name).stat() for name in files}
    absent = [name for name in (*layout.absent, *can_lack) if name not in layout.components]
    pipeline = _read(pipeline_class, folder, layout, source, device, {**dict.fromkeys(absent), **left_out})
    return pipeline, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()]


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


def _read(
    pipeline_class: Any,
    folder: Path,
    layout: Layout,
    source: Source,
    device: torch.device,
    given: Mapping[str, Any],
) -> Any:
    try:
        # safetensors only, and no code comes with a model, whoever made it.
        pipeline = pipeline_class.from_pretrained(
            folder,
            dtype=_dtype(source.dtype, device),
            variant=source.variant,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **given,
        )
    except Exception as error:  # out of the libraries, from a strange value or a broken file
        if isinstance(translate(error), OutOfMemory):
            raise
        what = "configuration" if isinstance(error, AttributeError | KeyError | TypeError) else "files"
        said = f"{type(error).__name__}: {error}"
        raise LoadError(f"{_component_in(error, layout)}{what} cannot be read ({said})") from error
    if source.scheduler != AS_PUBLISHED:
        pipeline.scheduler = overridden(pipeline.scheduler, source.scheduler)
    return optimized(make_ready(pipeline), source.optimization, device)


def _component_in(error: Exception, layout: Layout) -> str:
    """Name the component that failed, from the frame of diffusers' `load_sub_model` in the traceback."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_locals.get("name"))
        if frame.f_code.co_name == "load_sub_model" and name in layout.classes:
            return f"its {name} ({layout.classes[name][1]}): its "
    return "its "


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; `auto` is full precision on CPU, half on CUDA.

    Not yet seen on a GPU: `make test-gpu` prints what each dtype does there.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    # GPUs before Ampere only emulate bf16, many times slower than they compute in fp16.
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
