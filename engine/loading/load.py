"""From folders of weights to an `Engine` on one device, self-tested and ready to start.

Owns the thread count and the order: read, check what the catalogue offers, draw one image, test. The caller
owns the process: core affinity for `cpu:N`, `CUDA_VISIBLE_DEVICES` for `cuda:N` (so that the device inside is
always `cuda:0`).
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

from catalogue.parameters import Value
from catalogue.pipeline_tasks import PipelineTask
from engine.adapters.adapters import MAX_BYTES
from engine.adapters.lora_files import LoraSpec, located
from engine.attempt import translate
from engine.determinism import DeterminismLevel, SelfTest, weakest
from engine.engine import Engine
from engine.errors import EngineError, LoadError, OutOfMemory
from engine.loading.compilation import Size, as_written, compile_sizes, only_here
from engine.loading.controlnet import read_controlnet
from engine.loading.failures import remedy
from engine.loading.hub import Hub
from engine.loading.optimization import AS_IT_IS, Optimization, settle
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
from engine.self_test.kept import KeptSelfTest, SelfTestResults, self_test_key
from engine.self_test.self_test import Offer, find_determinism
from engine.self_test.time_budget import TimeBudget
from engine.self_test.trial_images import square

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSpec:
    """Where a model comes from, how it is read, and what requests may ask of it.

    What they may ask for is tried at load: empty or None is whatever the model can do.
    """

    name: str
    path: str
    revision: str | None = None  # of a hub id
    local_files_only: bool = True
    variant: str | None = None  # which of several sets of weights, `fp16` for one
    dtype: str = "auto"  # one of `read_pipeline.DTYPES`; auto: full precision on CPU, half on CUDA
    optimization: Optimization = AS_IT_IS
    scheduler: SchedulerOverrides = AS_PUBLISHED  # of the model's own scheduler
    tasks: tuple[PipelineTask, ...] = ()  # empty: the usual one of its class
    controlnet: str | None = None  # a folder or a hub id; for the task `control`
    controlnet_revision: str | None = None
    sizes: tuple[Size, ...] = ()  # the tiers' defaults, compiled besides the squares of `row_limits`
    schedulers: tuple[str, ...] = ()  # by the names that users know, the default first
    default_num_inference_steps: int = 2
    max_num_inference_steps: int = 150
    min_side: int | None = None  # pixels
    max_side: int | None = None
    side_multiple: int | None = None  # pixels
    step_cache: bool = False  # whether requests are told that they may ask for one
    weight_name: str | None = None  # of a single file in a folder or hub id
    config: Part | None = None  # the configuration of a single file
    vae: Part | None = None  # in the place of the model's own
    transformer: Part | None = None  # weights in the place of the model's own
    # Arguments of its pipelines' calls by name, each with a value to try that is not the default, if any.
    pipeline_parameters: Mapping[str, Value | None] = field(default_factory=dict)
    pipeline_defaults: Mapping[str, Value | None] = field(default_factory=dict)  # what a request has of them
    embeddings: tuple[TextualInversion, ...] = ()
    loras: tuple[LoraSpec, ...] = ()
    max_lora_bytes: int = MAX_BYTES  # of its adapters that are on the device at a time

    @property
    def source(self) -> Source:
        """Where it comes from and how it is read."""
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
        """What the self-test draws."""
        tried = {name: value for name, value in self.pipeline_parameters.items() if value is not None}
        names = self.schedulers or ("default",)
        schedulers = tuple(scheduler_named(name) for name in names)
        return Offer(schedulers, self.sizes, tried, self.max_num_inference_steps, self.tasks)


@dataclass(frozen=True)
class LoadedModels:
    """What an `Engine` is made of: models by name, row caps by model and pixels, what they promise."""

    models: Mapping[str, PipelineModel]
    row_limits: Mapping[str, Mapping[int, int]]
    determinism: DeterminismLevel
    self_test_seconds: float = 0.0  # what testing took in all


def load_engine(
    models: Sequence[ModelSpec],
    *,
    device: str,
    row_limits: Mapping[str, Mapping[int, int]],
    num_threads: int | None = None,
    hub: Hub | None = None,
    self_test_seconds: float = math.inf,
) -> Engine:
    """An engine of `load_models`, not started."""
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

    `row_limits` gives, for each model, the most rows of a step batch up to so many pixels
    (`{"tiny": {16384: 16, 36864: 8}}`); what has more pixels than the largest is refused.
    `self_test_seconds` are for all models together, and do not count what loading takes; a model for
    which they do not last has the promise `within 1/255`, and the caps as given. With `results` a model is
    tested only where what is kept there does not hold, and what was found is kept there.
    """
    torch_device = _device(device)
    if torch_device.type == "cpu" and num_threads is not None:
        torch.set_num_threads(num_threads)
    hub = hub or Hub()
    read: dict[str, PipelineModel] = {}
    files: dict[str, FileFacts] = {}
    for spec in models:
        with _named(spec):
            read[spec.name], files[spec.name] = _read(spec, torch_device, hub)
            settle(read[spec.name], spec.optimization, torch_device)
            _check_offer(spec, read[spec.name], row_limits[spec.name])
            if spec.loras:
                files_of_loras = located(spec.loras, spec.optimization, hub, spec.local_files_only)
                read[spec.name].offer_adapters(files_of_loras, spec.max_lora_bytes)
    limits: dict[str, Mapping[int, int]] = {}
    determinism_levels: list[DeterminismLevel] = []
    budget = TimeBudget(self_test_seconds)
    for spec in models:
        with _named(spec), only_here(is_wanted=spec.optimization.compile):
            load = _Load(spec, read[spec.name], row_limits[spec.name], budget)
            image = load.first_image()
            result = load.tested(image, files[spec.name], results)
        limits[spec.name] = result.row_limits
        determinism_levels.append(result.determinism)
    return LoadedModels(read, limits, weakest(*determinism_levels), budget.used_seconds)


def _read(spec: ModelSpec, device: torch.device, hub: Hub) -> tuple[PipelineModel, FileFacts]:
    """The model with a pipeline for each of its tasks, and the files that it was read from."""
    pipeline, files = read_pipeline(spec.source, device, hub)
    controlnet = None
    if spec.controlnet is not None:
        if "control" not in spec.tasks:
            raise LoadError("controlnet: it is for the task 'control', which tasks does not name")
        if spec.optimization.cpu_offload != "none":
            raise LoadError("controlnet: it goes with no cpu_offload")
        source = replace(spec.source, path=spec.controlnet, revision=spec.controlnet_revision, variant=None)
        controlnet, more = read_controlnet(source, device, hub)
        files = [*files, *more]
    model = PipelineModel(pipeline, pipelines_for(pipeline, spec.tasks, controlnet))
    model.declare(spec.pipeline_defaults)
    return model, files


def _check_offer(spec: ModelSpec, model: PipelineModel, row_limits: Mapping[int, int]) -> None:
    """Raise `LoadError` for what requests would be told they may ask for and the model cannot do."""
    for name in spec.pipeline_parameters:
        if not model.takes(name):
            raise LoadError(f"parameters.{name}: a {model.class_name} has no such parameter")
        if name in model.guidance_parameters:
            raise LoadError(f"parameters.{name}: it is given what a request's guidance_scale says")
    if spec.side_multiple is not None:
        if spec.side_multiple % model.pixels_per_latent:
            raise LoadError(
                f"side_multiple: {spec.side_multiple} is no multiple of {model.pixels_per_latent},"
                " the pixels along a side of one latent"
            )
        model.side_multiple = spec.side_multiple
    model.learn_schedulers(*square(model, min(row_limits)))
    for name in spec.schedulers:
        default, most = spec.default_num_inference_steps, spec.max_num_inference_steps
        model.schedulers.check_offer(name, scheduler_named(name), default, most)
    if spec.step_cache and not model.can_cache_steps and model.partial_forward is None:
        raise LoadError(
            f"step_cache: a {model.class_name} with its {model.denoiser_name} has none: set it to false"
        )
    limit = model.max_side
    if limit is None:
        return
    ends = f"the longest side that the model has positions for is {limit} pixels"
    if spec.max_side is not None and spec.max_side > limit:
        raise LoadError(f"max_side: {spec.max_side} is too large, {ends}: set max_side = {limit}")
    for width, height in (*spec.sizes, *(square(model, max_pixels) for max_pixels in row_limits)):
        if max(width, height) > limit:
            raise LoadError(
                f"tiers: an image of {width}x{height} cannot be drawn, {ends}: set a smaller tier"
            )


class _Load:
    """One model that has been read, on its way to a promise."""

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
        """Raise `LoadError` unless the model draws; as written, so that nothing is compiled for it alone."""
        spec, model, first = self._spec, self._model, self._first
        with as_written() if spec.optimization.compile else nullcontext():
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
        """A small image whose width is an odd multiple of `side_multiple`, where that is a limit's."""
        multiple, side = self._spec.side_multiple, self._spec.min_side
        if multiple is None or side is None:
            return []
        height = -(-side // multiple) * multiple
        width = height if height // multiple % 2 else height + multiple
        is_within = width <= (self._spec.max_side or width) and width * height <= max(self._row_limits)
        return [(width, height)] if is_within else []

    def tested(self, image: np.ndarray, files: FileFacts, results: SelfTestResults | None) -> SelfTest:
        """What an earlier start has found, where that holds; else what is found now, which is kept."""
        spec, model = self._spec, self._model
        if results is None or spec.optimization.compile:  # the test is also what compiles it
            result = self._find()
        else:
            result = self._kept_or_found(image, files, results)
        if spec.step_cache and not model.can_cache_steps:
            raise LoadError(
                f"step_cache: a {model.class_name} with its {model.denoiser_name} has none: set it to false"
            )
        return result

    def _kept_or_found(self, image: np.ndarray, files: FileFacts, results: SelfTestResults) -> SelfTest:
        spec, model, budget = self._spec, self._model, self._budget
        drawn = {**self._first, "scheduler": asdict(spec.offer.schedulers[0]), "offer": asdict(spec.offer)}
        key = self_test_key(model, files, self._row_limits, spec.optimization, results.machine, drawn)
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        kept = results.read(spec.name, key, self._row_limits)
        if kept is not None and kept.holds(digest, budget):
            model.buckets, model.abilities = kept.result.buckets, kept.abilities
            logger.info(
                "self-test of %r: %r, kept from %s", spec.name, kept.result.determinism, kept.tested_at
            )
            return kept.result
        if kept is not None:
            logger.warning("self-test of %r: what was kept from %s does not hold", spec.name, kept.tested_at)
        left_seconds = budget.left_seconds
        result = self._find()
        kept = KeptSelfTest(
            result,
            digest,
            model.abilities,
            tested_at=datetime.now(UTC).isoformat(timespec="seconds"),
            given_seconds=left_seconds if budget.is_spent() else None,
        )
        results.write(spec.name, key, kept)
        return result

    def _find(self) -> SelfTest:
        """What the model promises: as its settings made it, and as written too where not all is compiled."""
        spec, model, budget, limits = self._spec, self._model, self._budget, self._row_limits
        began_at = budget.used_seconds
        logger.info("self-test of %r begins: %.0f s of %g are used", spec.name, began_at, budget.seconds)
        if spec.optimization.compile:
            result = self._find_compiled()
        else:
            result = find_determinism(model, limits, spec.offer, budget)
        seconds = budget.used_seconds - began_at
        if budget.is_spent():
            logger.warning(
                "self-test of %r left off after %.0f s, its budget of %g s being used up: it promises %r, "
                "which a longer one may better",
                spec.name, seconds, budget.seconds, result.determinism,
            )  # fmt: skip
        else:
            logger.info("self-test of %r: %r, after %.1f s", spec.name, result.determinism, seconds)
        return result

    def _find_compiled(self) -> SelfTest:
        spec, model, budget = self._spec, self._model, self._budget
        with as_written():
            written = find_determinism(model, self._row_limits, spec.offer, budget, is_compiled=True)
        runs_alone = model.runs_alone
        result = find_determinism(model, written.row_limits, spec.offer, budget, is_compiled=True)
        model.runs_alone = model.runs_alone or runs_alone
        model.buckets = shared([written.buckets, result.buckets])
        limits = compile_sizes(model, spec.sizes, result.row_limits, budget)
        return SelfTest(weakest(written.determinism, result.determinism), limits, model.buckets)


def _device(name: str) -> torch.device:
    kind, _, _ = name.partition(":")
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "cuda" and torch.cuda.is_available():
        return torch.device("cuda:0")
    raise LoadError(f"device {name!r} is not there")


@contextmanager
def _named(spec: ModelSpec) -> Iterator[None]:
    """What keeps a model from loading, as one line that names the model; what does not fit is told so."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())
        if not isinstance(error, EXPLAINED):  # from deep inside a library, and so hardly a sentence
            logger.debug("model %r", spec.name, exc_info=True)
            said = f"{type(error).__name__}: {said}"
        if isinstance(translate(error), OutOfMemory):
            said = f"the device has too little memory, even for a step batch of {BUCKET_STEP} rows ({said})"
        elif not isinstance(error, EngineError):
            said = f"{said}: {remedy(error)}"
        raise LoadError(f"model {spec.name!r} from {spec.source.own.place}: {said}") from error


EXPLAINED = (EngineError, OSError, RuntimeError, ValueError, ImportError, SafetensorError)
