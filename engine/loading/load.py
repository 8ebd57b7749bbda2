"""Loads models onto one device, runs the self-test, and builds an `Engine` from them.

Owns torch's thread count and the order of loading: read the files, check what the catalogue offers, draw one
image, run the self-test. The caller owns the process: core affinity for `cpu:N`, and `CUDA_VISIBLE_DEVICES`
for `cuda:N`, so that the device is `cuda:0` inside the process.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from catalogue.determinism import DeterminismLevel, weakest
from catalogue.parameters import Value
from catalogue.pipeline_tasks import PipelineTask
from engine.adapters.adapters import MAX_BYTES
from engine.adapters.lora_files import LoraSpec, located
from engine.device_work import translate
from engine.engine import Engine
from engine.errors import EngineError, LoadError, OutOfMemory
from engine.loading.compilation import Size, compilation_allowed, compile_sizes, uncompiled
from engine.loading.controlnet import read_controlnet
from engine.loading.failures import remedy
from engine.loading.hub import Hub
from engine.loading.optimization import NO_OPTIMIZATION, Optimization, adapt_to_offloading
from engine.loading.read_pipeline import Source, read_pipeline
from engine.loading.replaced_components import Part
from engine.loading.scheduler_overrides import AS_PUBLISHED, SchedulerOverrides
from engine.loading.sibling_pipelines import pipelines_for
from engine.loading.textual_inversions import TextualInversion
from engine.loading.weight_files import FileFacts
from engine.pipelines.pipeline_model import PipelineModel
from engine.policy.buckets import BUCKET_STEP, shared
from engine.request import scheduler_named
from engine.self_test.first_image import check_image
from engine.self_test.self_test import Offer, SelfTest, find_determinism
from engine.self_test.stored_result import SelfTestResults, StoredSelfTest, self_test_key
from engine.self_test.time_budget import TimeBudget
from engine.self_test.trial_images import square

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSpec:
    """Where a model comes from, how it is read, and what requests may ask of it.

    Loading checks what requests may ask for; empty or None allows all that the model supports.
    """

    name: str
    path: str
    revision: str | None = None  # commit of a hub id
    local_files_only: bool = True
    variant: str | None = None  # one of several sets of weights, such as `fp16`
    dtype: str = "auto"  # one of `read_pipeline.DTYPES`; auto: full precision on CPU, half on CUDA
    optimization: Optimization = NO_OPTIMIZATION
    scheduler: SchedulerOverrides = AS_PUBLISHED  # applied to the model's own scheduler
    tasks: tuple[PipelineTask, ...] = ()  # empty: the first task of its pipeline class
    controlnet: str | None = None  # a folder or a hub id, for the task `control`
    controlnet_revision: str | None = None
    sizes: tuple[Size, ...] = ()  # default sizes of the tiers, tested and compiled
    schedulers: tuple[str, ...] = ()  # by public name, the default first
    default_num_inference_steps: int = 2
    max_num_inference_steps: int = 150
    min_side: int | None = None  # pixels
    max_side: int | None = None
    side_multiple: int | None = None  # pixels
    step_cache: bool = False  # whether requests may ask for one
    weight_name: str | None = None  # name of a single file in a folder or hub id
    config: Part | None = None  # the configuration of a single file
    vae: Part | None = None  # replaces the model's own
    transformer: Part | None = None  # weights that replace the model's own
    # Arguments of the pipelines' `__call__` by name; a value that is not the default, if any, is tested.
    trial_values: Mapping[str, Value | None] = field(default_factory=dict)
    pipeline_defaults: Mapping[str, Value | None] = field(default_factory=dict)  # used if a request has none
    embeddings: tuple[TextualInversion, ...] = ()
    adapters: tuple[LoraSpec, ...] = ()
    max_lora_bytes: int = MAX_BYTES  # limit for all of its adapters on the device together

    @property
    def source(self) -> Source:
        """The fields that say where the model comes from and how it is read."""
        return Source(
            self.path,
            self.revision,
            self.local_files_only,
            self.variant,
            self.dtype,
            self.optimization,
            self.scheduler,
            self.weight_name,
            self.config,
            self.vae,
            self.transformer,
            self.embeddings,
        )

    @property
    def offer(self) -> Offer:
        """The fields that determine which images the self-test draws."""
        tried = {name: value for name, value in self.trial_values.items() if value is not None}
        names = self.schedulers or ("default",)
        schedulers = tuple(scheduler_named(name) for name in names)
        return Offer(schedulers, self.sizes, tried, self.max_num_inference_steps, self.tasks)


@dataclass(frozen=True)
class LoadedModels:
    """The arguments of an `Engine`: models by name, row limits by model and pixels, determinism level."""

    models: Mapping[str, PipelineModel]
    row_limits: Mapping[str, Mapping[int, int]]
    determinism: DeterminismLevel
    self_test_seconds: float = 0.0  # time that the self-tests of all models took


def load_engine(
    models: Sequence[ModelSpec],
    *,
    device: str,
    row_limits: Mapping[str, Mapping[int, int]],
    num_threads: int | None = None,
    hub: Hub | None = None,
    self_test_seconds: float = math.inf,
) -> Engine:
    """Return an engine, not started, with the models of `load_models`."""
    loaded = load_models(
        models,
        device=device,
        row_limits=row_limits,
        num_threads=num_threads,
        hub=hub,
        self_test_seconds=self_test_seconds,
    )
    return Engine(loaded.models, loaded.row_limits, determinism=loaded.determinism)


def load_models(
    models: Sequence[ModelSpec],
    *,
    device: str,
    row_limits: Mapping[str, Mapping[int, int]],
    num_threads: int | None = None,
    hub: Hub | None = None,
    self_test_seconds: float = math.inf,
    results: SelfTestResults | None = None,
) -> LoadedModels:
    """Load `models` onto `device` (`cpu:N` or `cuda:N`) and run the self-test; raises `LoadError`.

    `row_limits` maps each model's maximum pixels per image to the maximum rows of a step batch
    (`{"tiny": {16384: 16, 36864: 8}}`); images with more pixels than the largest key are refused.
    `self_test_seconds` bounds the self-tests of all models together, not counting the time that loading
    takes; a model for which they are not enough gets the determinism level `within 1/255` and the given row
    limits. With `results` a model is tested only if its stored result does not hold, and new results are
    stored.
    """
    torch_device = _device(device)
    if torch_device.type == "cpu" and num_threads is not None:
        torch.set_num_threads(num_threads)
    hub = hub or Hub()
    read: dict[str, PipelineModel] = {}
    files: dict[str, FileFacts] = {}
    for spec in models:
        with _load_errors(spec):
            read[spec.name], files[spec.name] = _read(spec, torch_device, hub)
            adapt_to_offloading(read[spec.name], spec.optimization, torch_device)
            _check_offer(spec, read[spec.name], row_limits[spec.name])
            if spec.adapters:
                adapter_files = located(spec.adapters, spec.optimization, hub, spec.local_files_only)
                read[spec.name].offer_adapters(adapter_files, spec.max_lora_bytes)
    limits: dict[str, Mapping[int, int]] = {}
    determinism_levels: list[DeterminismLevel] = []
    budget = TimeBudget(self_test_seconds)
    for spec in models:
        with _load_errors(spec), compilation_allowed(is_wanted=spec.optimization.compile):
            test = _ModelTest(spec, read[spec.name], row_limits[spec.name], budget)
            image = test.first_image()
            result = test.result(image, files[spec.name], results)
        limits[spec.name] = result.row_limits
        determinism_levels.append(result.determinism)
    return LoadedModels(read, limits, weakest(determinism_levels), budget.used_seconds)


def _read(spec: ModelSpec, device: torch.device, hub: Hub) -> tuple[PipelineModel, FileFacts]:
    """Return the model, with a pipeline for each of its tasks, and the files that it was read from."""
    pipeline, files = read_pipeline(spec.source, device, hub)
    controlnet = None
    if spec.controlnet is not None:
        if "control" not in spec.tasks:
            raise LoadError("controlnet: only the task 'control' uses it: add 'control' to tasks")
        if spec.optimization.cpu_offload != "none":
            raise LoadError("controlnet: it cannot be combined with cpu_offload")
        source = replace(spec.source, path=spec.controlnet, revision=spec.controlnet_revision, variant=None)
        controlnet, more = read_controlnet(source, device, hub)
        files = [*files, *more]
    model = PipelineModel(pipeline, pipelines_for(pipeline, spec.tasks, controlnet))
    model.declare(spec.pipeline_defaults)
    return model, files


def _check_offer(spec: ModelSpec, model: PipelineModel, row_limits: Mapping[int, int]) -> None:
    """Raise `LoadError` if the catalogue offers requests something that the model does not support."""
    for name in spec.trial_values:
        if not model.takes(name):
            raise LoadError(f"parameters.{name}: a {model.class_name} has no such parameter")
        if name in model.guidance_parameters:
            raise LoadError(f"parameters.{name}: its value comes from a request's guidance_scale")
    if spec.side_multiple is not None:
        if spec.side_multiple % model.pixels_per_latent:
            raise LoadError(
                f"side_multiple: {spec.side_multiple} is not a multiple of {model.pixels_per_latent},"
                " the side of one latent in pixels"
            )
        model.side_multiple = spec.side_multiple
    model.learn_schedulers(*square(model, min(row_limits)))
    for name in spec.schedulers:
        default, most = spec.default_num_inference_steps, spec.max_num_inference_steps
        model.schedulers.check_offer(name, scheduler_named(name), default, most)
    if spec.step_cache and not model.can_cache_steps and model.partial_forward is None:
        raise LoadError(
            f"step_cache: a {model.class_name} with its {model.denoiser_name} does not support it:"
            " set it to false"
        )
    limit = model.max_side
    if limit is None:
        return
    bound = f"the model has positions for at most {limit} pixels along a side"
    if spec.max_side is not None and spec.max_side > limit:
        raise LoadError(f"max_side: {spec.max_side} is too large, {bound}: set max_side = {limit}")
    for width, height in (*spec.sizes, *(square(model, max_pixels) for max_pixels in row_limits)):
        if max(width, height) > limit:
            raise LoadError(
                f"tiers: an image of {width}x{height} cannot be drawn, {bound}: set a smaller tier"
            )


class _ModelTest:
    """Tests one model that has been read: draws its first image, then finds its determinism level."""

    def __init__(
        self, spec: ModelSpec, model: PipelineModel, row_limits: Mapping[int, int], budget: TimeBudget
    ) -> None:
        self._spec, self._model, self._row_limits, self._budget = spec, model, row_limits, budget
        smallest = min(row_limits)
        fitting = [size for size in spec.sizes if size[0] * size[1] <= smallest]
        self._first: dict[str, Any] = {
            "scheduler": spec.offer.schedulers[0],
            "size": fitting[0] if fitting else square(model, smallest),
            "default_steps": spec.default_num_inference_steps,
        }

    def first_image(self) -> np.ndarray:
        """Raise `LoadError` unless the model draws, in each task; runs uncompiled to save compile time."""
        spec, model, first = self._spec, self._model, self._first
        with uncompiled() if spec.optimization.compile else nullcontext():
            usual, *further = model.tasks
            is_as_published = usual in model.published_tasks
            image = check_image(
                model, self._row_limits, **first, **({} if is_as_published else self._of_task(usual))
            )
            for task in further:
                check_image(model, self._row_limits, **first, **self._of_task(task))
            for size in self._odd_sizes():
                odd = {**first, "size": size, "entry": f"side_multiple: {spec.side_multiple} is too small"}
                check_image(model, self._row_limits, **odd)
        return image

    def _of_task(self, task: PipelineTask) -> dict[str, Any]:
        published = ", ".join(self._model.published_tasks)
        return {"task": task, "entry": f"tasks: {task!r} (it was published for {published})"}

    def _odd_sizes(self) -> list[Size]:
        """Return a small size whose width is an odd multiple of `side_multiple`, if the limits allow one."""
        multiple, side = self._spec.side_multiple, self._spec.min_side
        if multiple is None or side is None:
            return []
        height = -(-side // multiple) * multiple
        width = height if height // multiple % 2 else height + multiple
        is_within = width <= (self._spec.max_side or width) and width * height <= max(self._row_limits)
        return [(width, height)] if is_within else []

    def result(self, image: np.ndarray, files: FileFacts, results: SelfTestResults | None) -> SelfTest:
        """Return the stored result of an earlier start if it holds; otherwise test, and store the result."""
        spec, model = self._spec, self._model
        if results is None or spec.optimization.compile:  # the test also compiles the model
            result = self._find()
        else:
            result = self._stored_or_found(image, files, results)
        if spec.step_cache and not model.can_cache_steps:
            raise LoadError(
                f"step_cache: a {model.class_name} with its {model.denoiser_name} does not support it:"
                " set it to false"
            )
        return result

    def _stored_or_found(self, image: np.ndarray, files: FileFacts, results: SelfTestResults) -> SelfTest:
        spec, model, budget = self._spec, self._model, self._budget
        drawn = {**self._first, "scheduler": asdict(spec.offer.schedulers[0]), "offer": asdict(spec.offer)}
        key = self_test_key(model, files, self._row_limits, spec.optimization, results.machine, drawn)
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        stored = results.read(spec.name, key, self._row_limits)
        if stored is not None and stored.holds(digest, budget):
            model.buckets, model.abilities = stored.result.buckets, stored.abilities
            logger.info(
                "self-test of %r: %r, stored at %s", spec.name, stored.result.determinism, stored.tested_at
            )
            return stored.result
        if stored is not None:
            logger.warning(
                "self-test of %r: the result stored at %s does not hold", spec.name, stored.tested_at
            )
        left_seconds = budget.left_seconds
        result = self._find()
        stored = StoredSelfTest(
            result,
            digest,
            model.abilities,
            tested_at=datetime.now(UTC).isoformat(timespec="seconds"),
            given_seconds=left_seconds if budget.is_spent() else None,
        )
        results.write(spec.name, key, stored)
        return result

    def _find(self) -> SelfTest:
        """Run the self-test; a compiled model is tested uncompiled too, since not every size is compiled."""
        spec, model, budget, limits = self._spec, self._model, self._budget, self._row_limits
        began_at = budget.used_seconds
        logger.info("self-test of %r starts: %.0f s of %g s are used", spec.name, began_at, budget.seconds)
        if spec.optimization.compile:
            result = self._find_compiled()
        else:
            result = find_determinism(model, limits, spec.offer, budget)
        seconds = budget.used_seconds - began_at
        if budget.is_spent():
            logger.warning(
                "self-test of %r stopped after %.0f s because its budget of %g s was spent: the determinism "
                "level is %r, and a longer test may find a stronger one",
                spec.name, seconds, budget.seconds, result.determinism,
            )  # fmt: skip
        else:
            logger.info("self-test of %r: %r, after %.1f s", spec.name, result.determinism, seconds)
        return result

    def _find_compiled(self) -> SelfTest:
        spec, model, budget = self._spec, self._model, self._budget
        with uncompiled():
            written = find_determinism(model, self._row_limits, spec.offer, budget, is_compiled=True)
        runs_alone = model.runs_alone
        result = find_determinism(model, written.row_limits, spec.offer, budget, is_compiled=True)
        model.runs_alone = model.runs_alone or runs_alone
        model.buckets = shared([written.buckets, result.buckets])
        limits = compile_sizes(model, spec.sizes, result.row_limits, budget)
        return SelfTest(weakest((written.determinism, result.determinism)), limits, model.buckets)


def _device(name: str) -> torch.device:
    kind, _, _ = name.partition(":")
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "cuda" and torch.cuda.is_available():
        return torch.device("cuda:0")
    raise LoadError(f"device {name!r} is not available")


@contextmanager
def _load_errors(spec: ModelSpec) -> Iterator[None]:
    """Turn every error into a `LoadError` of one line that names the model."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())
        if not isinstance(error, EXPLAINED):  # raised deep inside a library, so the message may be unclear
            logger.debug("model %r", spec.name, exc_info=True)
            said = f"{type(error).__name__}: {said}"
        if isinstance(translate(error), OutOfMemory):
            said = f"the device has too little memory, even for a step batch of {BUCKET_STEP} rows ({said})"
        elif not isinstance(error, EngineError):
            said = f"{said}: {remedy(error)}"
        raise LoadError(f"model {spec.name!r} from {spec.source.own.place}: {said}") from error


EXPLAINED = (EngineError, OSError, RuntimeError, ValueError, ImportError, SafetensorError)
"""Errors whose message is understood without the name of its class."""
