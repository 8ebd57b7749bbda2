"""From folders of weights to an `Engine` on one device, self-tested and ready to start.

Owns the choice of family and dtype and the thread count. The caller owns the process: core affinity for
`cpu:N`, `CUDA_VISIBLE_DEVICES` for `cuda:N` (so that the device inside is always `cuda:0`).
"""

import hashlib
import inspect
import logging
import math
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import diffusers
import torch
import transformers
from safetensors import SafetensorError

from engine.buckets import BUCKET_STEP, shared
from engine.compilation import Size, as_written, compile_sizes, only_here
from engine.engine import Engine
from engine.errors import EngineError, LoadError, OutOfMemory, RequestInvalid
from engine.families.family import Family
from engine.families.flux import Flux
from engine.families.pixart import PixArt
from engine.families.sana import Sana
from engine.families.stable_diffusion import StableDiffusion
from engine.families.stable_diffusion_3 import StableDiffusion3
from engine.families.stable_diffusion_xl import StableDiffusionXL
from engine.first_image import check_first_image, square
from engine.hub import Hub, names_in, text_in
from engine.kept_self_tests import KeptSelfTest, SelfTestKey, SelfTestResults, Weights, self_test_key
from engine.layout import INDEX, Layout, check_components, check_pipeline, files_to_load, read_layout
from engine.loaded_pipeline import make_ready
from engine.optimization import AS_IT_IS, Optimization, optimized, settle
from engine.pipeline_model import LEFT_OUT, PipelineModel, not_given
from engine.pipeline_self_test import check_image, find_promise
from engine.rehearsal import is_exact_in_company
from engine.request import SchedulerSpec, scheduler_named
from engine.runner import translate
from engine.sampling import CoefficientTables, schedulers_of
from engine.scheduler_overrides import AS_PUBLISHED, SchedulerOverrides, overridden
from engine.self_test import PROMISES, Promise, SelfTest, digest_of_one, run_self_test
from engine.time_budget import TimeBudget

FamilyClass = (
    type[StableDiffusion]
    | type[StableDiffusionXL]
    | type[StableDiffusion3]
    | type[PixArt]
    | type[Sana]
    | type[Flux]
)
FAMILIES: Mapping[str, FamilyClass] = {
    "stable_diffusion": StableDiffusion,
    "stable_diffusion_xl": StableDiffusionXL,
    "stable_diffusion_3": StableDiffusion3,
    "pixart": PixArt,
    "sana": Sana,
    "flux": Flux,
}
ANY = "diffusers"
"""The family of whatever else diffusers has a pipeline for."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
logger = logging.getLogger(__name__)
# diffusers logs the end of a prompt that it cuts; we say so to the caller and log nobody's prompts.
logging.getLogger("diffusers.pipelines").setLevel(logging.ERROR)


@dataclass(frozen=True)
class ModelSpec:
    """Where a model comes from and how it is read; `revision` and `local_files_only` are a hub id's."""

    name: str
    path: str
    family: str = "stable_diffusion"
    revision: str | None = None
    local_files_only: bool = True
    variant: str | None = None  # which of several sets of weights, `fp16` for one
    dtype: str = "auto"  # one of `DTYPES`; auto: full precision on CPU, half on CUDA
    optimization: Optimization = AS_IT_IS
    # What requests may ask for, which is tried at load: empty or None is whatever the model can do.
    sizes: tuple[Size, ...] = ()  # the tiers' defaults, compiled besides the squares of `row_limits`
    schedulers: tuple[str, ...] = ()  # by the names that users know, the default first
    scheduler: SchedulerOverrides = AS_PUBLISHED  # of the model's own scheduler
    default_num_inference_steps: int = 2
    max_num_inference_steps: int = 150
    max_side: int | None = None  # pixels
    step_cache: bool = False  # whether requests are told that they may ask for one; natives always are
    pipeline_parameters: tuple[str, ...] = ()  # by name: arguments of its pipeline's call


@dataclass(frozen=True)
class LoadedModels:
    """What an `Engine` is made of: families by name, row caps by model and pixels, what they promise."""

    families: Mapping[str, Any]  # `Family` or `PipelineModel`
    row_limits: Mapping[str, Mapping[int, int]]
    promise: Promise
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
    return Engine(loaded.families, loaded.row_limits, promise=loaded.promise)


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
    read: dict[str, _Loaded] = {}
    for spec in models:
        with _named(spec):
            read[spec.name] = _load_family(spec, torch_device, hub or Hub())
            _check_offer(spec, read[spec.name].family, row_limits[spec.name])
    limits: dict[str, Mapping[int, int]] = {}
    promises: list[Promise] = []
    budget = TimeBudget(self_test_seconds)
    for spec in models:
        family, weights = read[spec.name].family, read[spec.name].weights
        with _named(spec), only_here(is_wanted=spec.optimization.compile):
            if isinstance(family, PipelineModel):
                result = _tested_pipeline(spec, family, weights, row_limits[spec.name], budget, results)
                limits[spec.name] = result.row_limits
                promises.append(result.promise)
                continue
            _draw_first_image(spec, read[spec.name], row_limits[spec.name])
            if results is None or spec.optimization.compile:  # the test is also what compiles it
                result = _tested(spec, family, row_limits[spec.name], budget)
            else:
                result = _kept_or_tested(
                    _KeptTest.of_family(
                        spec, family, weights, row_limits[spec.name], budget, results.machine
                    ),
                    budget,
                    results,
                )
        limits[spec.name] = result.row_limits
        promises.append(result.promise)
    families = {name: one.family for name, one in read.items()}
    return LoadedModels(families, limits, _weakest(promises), budget.used_seconds)


@dataclass(frozen=True)
class _Loaded:
    """A model in memory, not tested yet."""

    family: Any  # a `Family` or a `PipelineModel`
    weights: Weights
    components: Mapping[str, Any]  # the pipeline's, by its names for them


def _tested_pipeline(
    spec: ModelSpec,
    model: PipelineModel,
    weights: Weights,
    row_limits: Mapping[int, int],
    budget: TimeBudget,
    results: SelfTestResults | None,
) -> SelfTest:
    """What a diffusers pipeline promises; raises `LoadError` where it draws no image."""
    smallest = min(row_limits)
    fitting = [size for size in spec.sizes if size[0] * size[1] <= smallest]
    scheduler = scheduler_named(spec.schedulers[0] if spec.schedulers else "default")
    size = fitting[0] if fitting else square(model, smallest)
    default_steps = spec.default_num_inference_steps
    image = check_image(model, row_limits, scheduler=scheduler, size=size, default_steps=default_steps)
    if results is None or spec.optimization.compile:  # the test is also what compiles it
        result = find_promise(model, row_limits, scheduler, budget)
    else:
        drawn = {"scheduler": asdict(scheduler), "size": size, "default_steps": default_steps}
        key = self_test_key(model, weights, row_limits, spec.optimization, results.machine, drawn)
        test = _KeptTest(
            spec.name,
            model,
            row_limits,
            key,
            output_digest=lambda: hashlib.sha256(image.tobytes()).hexdigest(),
            run=lambda: find_promise(model, row_limits, scheduler, budget),
        )
        result = _kept_or_tested(test, budget, results)
    if spec.step_cache and not model.can_cache_steps:
        raise LoadError(
            f"step_cache: a {model.class_name} with its {model.denoiser_name} has none: set it to false"
        )
    logger.info("self-test of %r: %r, after %.1f s", spec.name, result.promise, budget.used_seconds)
    return result


def _check_offer(spec: ModelSpec, family: Any, row_limits: Mapping[int, int]) -> None:
    """Raise `LoadError` for what requests would be told they may ask for and the model cannot do."""
    for name in spec.pipeline_parameters:
        if not (isinstance(family, PipelineModel) and family.takes(name)):
            raise LoadError(
                f"parameters.{name}: its pipeline has no such parameter; only the family {ANY!r} can have any"
            )
        if name == family.guidance_parameter:
            raise LoadError(f"parameters.{name}: it is given what a request's guidance_scale says")
    if isinstance(family, PipelineModel):
        family.learn_schedulers(*square(family, min(row_limits)))
        for name in spec.schedulers:
            default, most = spec.default_num_inference_steps, spec.max_num_inference_steps
            family.schedulers.check_offer(name, scheduler_named(name), default, most)
        return
    tables = CoefficientTables(family.scheduler, family.flow_sigmas)
    for name in spec.schedulers:
        default, most = spec.default_num_inference_steps, spec.max_num_inference_steps
        tables.check_offer(name, scheduler_named(name), default, most)
    if not (spec.schedulers or schedulers_of(family.scheduler, family.flow_sigmas)):
        refused = f"no scheduler here can draw with its {type(family.scheduler).__name__}"
        try:
            tables.table(SchedulerSpec("euler" if family.flow_sigmas is None else "flow_match_euler"), 2)
        except RequestInvalid as error:
            raise LoadError(f"{refused}: {error}") from error
        raise LoadError(refused)
    limit = family.max_side
    if limit is None:
        return
    ends = f"the longest side that the model has positions for is {limit} pixels"
    if spec.max_side is not None and spec.max_side > limit:
        raise LoadError(f"max_side: {spec.max_side} is too large, {ends}: set max_side = {limit}")
    sizes = [*spec.sizes, *(square(family, max_pixels) for max_pixels in row_limits)]
    for width, height in sizes:
        if max(width, height) > limit:
            raise LoadError(
                f"tiers: an image of {width}x{height} cannot be drawn, {ends}: set a smaller tier"
            )


def _draw_first_image(spec: ModelSpec, read: _Loaded, row_limits: Mapping[int, int]) -> None:
    """Raise `LoadError` unless the model draws; as written, so that nothing is compiled for it alone."""
    family, smallest = read.family, min(row_limits)
    fitting = [size for size in spec.sizes if size[0] * size[1] <= smallest]
    if spec.schedulers:
        scheduler = scheduler_named(spec.schedulers[0])
    else:
        scheduler = SchedulerSpec(schedulers_of(family.scheduler, family.flow_sigmas)[0])
    with as_written() if spec.optimization.compile else nullcontext():
        check_first_image(
            family,
            row_limits,
            read.components,
            scheduler=scheduler,
            size=fitting[0] if fitting else square(family, smallest),
            default_steps=spec.default_num_inference_steps,
        )


@dataclass(frozen=True)
class _KeptTest:
    """The self-test of one model, whose result can be kept under `key`."""

    name: str  # the model's
    family: Any  # a `Family` or a `PipelineModel`
    row_limits: Mapping[int, int]
    key: SelfTestKey
    output_digest: Callable[[], str]
    run: Callable[[], SelfTest]

    @classmethod
    def of_family(
        cls,
        spec: ModelSpec,
        family: Family,
        weights: Weights,
        row_limits: Mapping[int, int],
        budget: TimeBudget,
        machine: Mapping[str, str],
    ) -> Self:
        """That of a native family."""
        return cls(
            spec.name,
            family,
            row_limits,
            self_test_key(family, weights, row_limits, spec.optimization, machine),
            output_digest=lambda: digest_of_one(family, row_limits),
            run=lambda: _tested(spec, family, row_limits, budget),
        )


def _kept_or_tested(test: _KeptTest, budget: TimeBudget, results: SelfTestResults) -> SelfTest:
    """What an earlier start has found, where that holds; else what is found now, which is kept."""
    family = test.family
    is_pipeline = isinstance(family, PipelineModel)
    kept = results.read(test.name, test.key, test.row_limits)
    if kept is not None and is_pipeline and kept.abilities is None:
        kept = None
    if kept is not None and kept.holds(test.output_digest, budget):
        family.buckets = kept.result.buckets
        if is_pipeline:
            family.abilities = kept.abilities
        logger.info("self-test of %r: %r, kept from %s", test.name, kept.result.promise, kept.tested_at)
        return kept.result
    if kept is not None:
        logger.warning("self-test of %r: what was kept from %s does not hold", test.name, kept.tested_at)
    left_seconds = budget.left_seconds
    result = test.run()
    kept = KeptSelfTest(
        result,
        test.output_digest(),
        tested_at=datetime.now(UTC).isoformat(timespec="seconds"),
        given_seconds=left_seconds if budget.is_spent() else None,
        abilities=family.abilities if is_pipeline else None,
    )
    results.write(test.name, test.key, kept)
    return result


def _tested(spec: ModelSpec, family: Family, row_limits: Mapping[int, int], budget: TimeBudget) -> SelfTest:
    """What the model promises: as its settings made it, and as written too where not all is compiled."""
    began_at = budget.used_seconds
    logger.info("self-test of %r begins: %.0f s of %g are used", spec.name, began_at, budget.seconds)
    is_compiled = spec.optimization.compile
    results: list[SelfTest] = []
    if is_compiled:
        with as_written():
            results.append(run_self_test(family, row_limits, budget, is_compiled=True))
        row_limits = results[0].row_limits
    result = run_self_test(family, row_limits, budget, is_compiled=is_compiled)
    results.append(result)
    promises = [one.promise for one in results]
    row_limits, family.buckets = result.row_limits, shared(one.buckets for one in results)
    if is_compiled:
        row_limits = compile_sizes(family, spec.sizes, row_limits, budget)
    if _speaks_of_company(_weakest(promises)) and not is_exact_in_company(
        family, row_limits, budget, promise=_weakest(promises)
    ):
        promises.append("within 1/255")
    promise, seconds = _weakest(promises), budget.used_seconds - began_at
    if budget.is_spent():
        logger.warning(
            "self-test of %r left off after %.0f s, its budget of %g s being used up: it promises %r, "
            "which a longer one may better",
            spec.name, seconds, budget.seconds, promise,
        )  # fmt: skip
    else:
        logger.info("self-test of %r: %r, after %.1f s", spec.name, promise, seconds)
    return SelfTest(promise, row_limits, family.buckets)


def _speaks_of_company(promise: Promise) -> bool:
    """Whether it says that an image is the same beside others as alone; under the others strict is alone."""
    return promise in ("exact", "exact within a bucket")


def _weakest(promises: Sequence[Promise]) -> Promise:
    return max(promises, key=PROMISES.index)


def _device(name: str) -> torch.device:
    kind, _, _ = name.partition(":")
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "cuda" and torch.cuda.is_available():
        return torch.device("cuda:0")
    raise LoadError(f"device {name!r} is not there")


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


@contextmanager
def _named(spec: ModelSpec) -> Iterator[None]:
    """What keeps a model from loading, as one line that names the model; what does not fit is told so."""
    try:
        yield
    except Exception as error:
        place = f"{spec.path!r}" + (f" at {spec.revision}" if spec.revision else "")
        said = " ".join(str(error).split())
        if not isinstance(error, EXPLAINED):  # from deep inside a library, and so hardly a sentence
            logger.debug("model %r", spec.name, exc_info=True)
            said = f"{type(error).__name__}: {said}"
        if isinstance(translate(error), OutOfMemory):
            said = f"the device has too little memory, even for a step batch of {BUCKET_STEP} rows ({said})"
        raise LoadError(f"model {spec.name!r} from {place}: {said}") from error


EXPLAINED = (EngineError, OSError, RuntimeError, ValueError, ImportError, SafetensorError)


def _load_family(spec: ModelSpec, device: torch.device, hub: Hub) -> _Loaded:
    if spec.family not in (*FAMILIES, ANY):
        raise LoadError(f"there is no family {spec.family!r}")
    family = FAMILIES.get(spec.family)
    left_out = LEFT_OUT if family is None else family.LEFT_OUT
    folder = hub.folder(
        spec.path,
        revision=spec.revision,
        variant=spec.variant,
        local_files_only=spec.local_files_only,
        left_out=left_out,
    )
    layout = read_layout(folder / INDEX, left_out)
    pipeline_class = _pipeline_class(spec, layout)
    if family is None:
        left_out = not_given(pipeline_class)
    can_lack = pipeline_class._optional_components if family is None else family.CAN_LACK
    check_components(layout, _needed(pipeline_class, {*left_out, *can_lack}))
    _check_classes(layout)
    files = files_to_load(layout, names_in(folder), spec.variant, text_in(folder))
    stats = {name: (folder / name).stat() for name in files}
    weights = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()]
    absent = [name for name in (*layout.absent, *can_lack) if name not in layout.components]
    pipeline = _read(pipeline_class, folder, layout, spec, device, {**dict.fromkeys(absent), **left_out})
    loaded = PipelineModel(pipeline) if family is None else family(pipeline)
    settle(loaded, spec.optimization, device)
    return _Loaded(loaded, weights, pipeline.components)


def _pipeline_class(spec: ModelSpec, layout: Layout) -> Any:
    """diffusers' class that the model is for; raises `LoadError` where the family does not read it."""
    if spec.family == ANY:
        if not hasattr(diffusers, layout.pipeline):
            raise LoadError(
                f"it is a {layout.pipeline}, which diffusers {diffusers.__version__} does not have:"
                " install a diffusers that has it"
            )
        return getattr(diffusers, layout.pipeline)
    pipelines = {name: [each.__name__ for each in one.PIPELINES] for name, one in FAMILIES.items()}
    check_pipeline(layout, pipelines[spec.family], pipelines)
    return next(one for one in FAMILIES[spec.family].PIPELINES if one.__name__ == layout.pipeline)


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
    spec: ModelSpec,
    device: torch.device,
    given: Mapping[str, Any],
) -> Any:
    try:
        # safetensors only, and no code comes with a model, whoever made it.
        pipeline = pipeline_class.from_pretrained(
            folder,
            dtype=_dtype(spec.dtype, device),
            variant=spec.variant,
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
    if spec.scheduler != AS_PUBLISHED:
        pipeline.scheduler = overridden(pipeline.scheduler, spec.scheduler)
    return optimized(make_ready(pipeline), spec.optimization, device)


def _component_in(error: Exception, layout: Layout) -> str:
    """Name the component that failed, from the frame of diffusers' `load_sub_model` in the traceback."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_locals.get("name"))
        if frame.f_code.co_name == "load_sub_model" and name in layout.classes:
            return f"its {name} ({layout.classes[name][1]}): its "
    return "its "
