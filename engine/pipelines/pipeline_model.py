"""A loaded diffusers pipeline of any class, with what the engine needs to know about it.

Owns the exchange that all its calls share, of every pipeline task, and the abilities that a self-test has
found. `TaskPipeline` turns a request into the arguments of a call.
"""

import inspect
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.nn import Module

from catalogue.parameters import Value
from catalogue.pipeline_tasks import PipelineTask, task_faults, task_of
from engine.adapters.adapter import Applied, texts_order_of
from engine.adapters.adapter_file import AdapterReader
from engine.adapters.adapters import Adapters, Locate, asked_by
from engine.errors import LoadError, RequestInvalid
from engine.exchange import Exchange
from engine.loading.loaded_pipeline import Vocabularies
from engine.partial_forwards import partial_forward_of
from engine.pipelines.components import denoiser_among
from engine.pipelines.encoded_prompts import EncodedPrompts
from engine.pipelines.parked_call import ParkedCall
from engine.pipelines.pipeline_call import PipelineCall
from engine.pipelines.pipeline_task import own_tasks
from engine.pipelines.schedulers import Schedulers
from engine.pipelines.steady_stack import on_steady_stack
from engine.pipelines.task_pipeline import TaskPipeline
from engine.pipelines.text_padding import TextPadding
from engine.pipelines.truncation import Reader
from engine.policy.buckets import UNTESTED, BucketsByShape
from engine.request import GenerationRequest, SchedulerSpec

PIXELS_PER_LATENT = 8  # along one side, if the pipeline does not say
MAX_SIGNATURES = 4096


LEFT_OUT: Mapping[str, Any] = {
    "safety_checker": None,
    "feature_extractor": None,
    "image_encoder": None,
    "requires_safety_checker": False,
    "add_watermarker": False,  # needs another library and changes the pixels
}
"""Components and options to load a pipeline without: the engine neither checks nor marks images."""


def not_given(pipeline_class: Any) -> dict[str, Any]:
    """The entries of `LEFT_OUT` that the constructor of the class accepts."""
    parameters = inspect.signature(pipeline_class.__init__).parameters
    return {name: value for name, value in LEFT_OUT.items() if name in parameters}


@dataclass(frozen=True)
class Abilities:
    """What a self-test finds out about a pipeline, apart from its determinism level; see `PipelineModel`."""

    runs_alone: bool
    num_guided_rows: int
    can_cut_guidance: bool
    can_cache_steps: bool
    takes_float_timesteps: bool
    text_padding: TextPadding | None = None
    takes_several_images: bool = False
    uncut_tasks: tuple[PipelineTask, ...] = ()
    uncached_tasks: tuple[PipelineTask, ...] = ()

    @classmethod
    def of_plain(cls, document: Mapping[str, Any]) -> Self:
        """Read the output of `asdict` back from JSON; raises `TypeError` or `ValueError`."""
        padding = document.get("text_padding")
        tasks = {name: tuple(document.get(name, ())) for name in ("uncut_tasks", "uncached_tasks")}
        text_padding = None if padding is None else TextPadding.of_plain(padding)
        return cls(**{**document, **tasks, "text_padding": text_padding})


class PipelineModel:
    """A pipeline that diffusers has loaded, on its device; its modules are put into `eval` mode.

    `pipelines` has a pipeline over the same modules for each task that requests may ask for, the usual task
    first. Without it, `pipeline` draws the task of its class.
    """

    # Set by the self-test:
    buckets: BucketsByShape = UNTESTED
    runs_alone = False  # its images depend on the other members of a batch
    num_guided_rows = 2  # rows of a forward pass at a guidance scale above 1
    can_cut_guidance = False  # a call can lose its guidance row between two steps
    can_cache_steps = False  # cached rows can skip the inner blocks of the denoiser
    takes_several_images = False  # an edit can have several images
    uncut_tasks: tuple[PipelineTask, ...] = ()  # exceptions to `can_cut_guidance`
    uncached_tasks: tuple[PipelineTask, ...] = ()  # exceptions to `can_cache_steps`

    adapters: Adapters | None = None
    """The adapters that requests can ask for; None if the model has none."""

    def __init__(self, pipeline: Any, pipelines: Mapping[PipelineTask, Any] | None = None) -> None:
        pipelines = pipelines or {own_tasks(type(pipeline))[0]: pipeline}
        components = {name: one for each in pipelines.values() for name, one in each.components.items()}
        components |= pipeline.components
        self.modules = {name: one for name, one in components.items() if isinstance(one, Module)}
        for module in self.modules.values():
            module.eval().requires_grad_(False)
        self._pipeline = pipeline
        self._denoiser: Any = self.modules[denoiser_among(list(self.modules)) or ""]
        self.partial_forward: Any = partial_forward_of(self._denoiser)
        config = self._denoiser.config
        self._by_task = {task: TaskPipeline(task, one, config) for task, one in pipelines.items()}
        self._base = next(iter(self._by_task.values()))
        self.scheduler: Any = pipeline.scheduler
        self.schedulers = Schedulers(self.scheduler)
        self._vocabularies = Vocabularies(pipeline)
        self.exchange = Exchange(pipeline, self.modules)
        self.exchange.has_one_layout = True
        self._signature_numbers: dict[Hashable, int] = {}
        self._num_signatures = 0
        self.device: Any = self._denoiser.device
        self.dtype: Any = self._denoiser.dtype
        self.pixels_per_latent: int = getattr(pipeline, "vae_scale_factor", PIXELS_PER_LATENT)
        self.side_multiple: int = self.pixels_per_latent  # the loader may set a larger one

    @on_steady_stack
    @torch.inference_mode()
    def learn_schedulers(self, width: int, height: int) -> None:
        """Begin a call of each task to see what it passes to its scheduler: not every scheduler accepts it.

        Raises `LoadError` if the scheduler cannot be set up, or if its steps are not finite.
        """
        own = SchedulerSpec("default")
        plain = GenerationRequest("", "a scheduler", width, height, 2, 1.0, seed=0, scheduler=own)
        handed: set[str] = set()
        for task in self.tasks:
            request = self.trial(plain, task)
            try:
                scheduler = self.schedulers.make(own, request.num_inference_steps)
            except RequestInvalid as error:
                raise LoadError(f"its {type(self.scheduler).__name__} cannot be used ({error})") from error
            pipeline = self._by_task[task]
            call = self.exchange.begin(scheduler, None, 1.0, pipeline.pipeline, **pipeline.arguments(request))
            self.exchange.run_to_denoiser(call)
            # A failed call has dropped its scheduler; the first image reports the reason.
            handed |= getattr(scheduler, "handed", frozenset())
            call.end()
        self.schedulers = Schedulers(self.scheduler, handed=handed)

    def offer_adapters(self, files: Mapping[str, Locate], max_bytes: int) -> None:
        """Let requests use these adapters by name; raises `LoadError` if the pipeline supports none."""
        self.adapters = Adapters(AdapterReader(self._pipeline, self.device), files, max_bytes)

    @property
    def tasks(self) -> tuple[PipelineTask, ...]:
        """The pipeline tasks that requests may ask for, the usual one first."""
        return tuple(self._by_task)

    def trial(
        self, request: GenerationRequest, task: PipelineTask | None = None, *, num_images: int = 1
    ) -> GenerationRequest:
        """The request as one of this task (None: the usual one), with generated input images and a strength.

        It keeps the declared pipeline parameters that the task's call accepts.
        """
        pipeline = self._base if task is None else self._by_task[task]
        given = request.parameters.pipeline_parameters
        taken = {name: value for name, value in given.items() if pipeline.takes(name)}
        images = pipeline.trial_images(request, num_images=num_images)
        return request.changed(pipeline_parameters=taken, **images)

    def taken_beside(
        self, usual: PipelineTask, task: PipelineTask, values: Mapping[str, Value]
    ) -> dict[str, Value]:
        """The values of parameters that the call of `task` accepts and that of the usual task does not."""
        takes, takes_usually = self._by_task[task].takes, self._by_task[usual].takes
        return {name: value for name, value in values.items() if takes(name) and not takes_usually(name)}

    def declare(self, defaults: Mapping[str, Value | None]) -> None:
        """Set the defaults of the declared parameters, which a task may ignore if its call lacks them."""
        for pipeline in self._by_task.values():
            pipeline.declared = defaults

    @property
    def abilities(self) -> Abilities:
        """What the self-test found; set by the test, or all at once from a kept result."""
        return Abilities(
            self.runs_alone,
            self.num_guided_rows,
            self.can_cut_guidance,
            self.can_cache_steps,
            self.exchange.takes_float_timesteps,
            self.text_padding,
            self.takes_several_images,
            self.uncut_tasks,
            self.uncached_tasks,
        )

    @abilities.setter
    def abilities(self, found: Abilities) -> None:
        self.runs_alone = found.runs_alone
        self.num_guided_rows = found.num_guided_rows
        self.can_cut_guidance = found.can_cut_guidance
        self.can_cache_steps = found.can_cache_steps and self.partial_forward is not None
        self.exchange.takes_float_timesteps = found.takes_float_timesteps
        self.takes_several_images = found.takes_several_images
        self.uncut_tasks, self.uncached_tasks = found.uncut_tasks, found.uncached_tasks
        self.text_padding = found.text_padding

    @property
    def text_padding(self) -> TextPadding | None:
        """How texts of different lengths are padded; set by the self-test."""
        return self.exchange.text_padding

    @text_padding.setter
    def text_padding(self, found: TextPadding | None) -> None:
        self.exchange.text_padding = found

    @property
    def settings(self) -> dict[str, Any]:
        """The configurations of pipelines and scheduler, which decide images together with the weights."""
        further: dict[str, Any] = {
            task: one.pipeline for task, one in self._by_task.items() if one is not self._base
        }
        parts: dict[str, Any] = {"pipeline": self._base.pipeline, "scheduler": self.scheduler, **further}
        return {
            name: [
                type(part).__name__,
                {key: str(part.config[key]) for key in sorted(part.config) if key[0] != "_"},
            ]
            for name, part in parts.items()
        }

    @property
    def published_tasks(self) -> tuple[PipelineTask, ...]:
        """The tasks of the pipeline class that the model's folder names."""
        return own_tasks(type(self._pipeline))

    @property
    def class_name(self) -> str:
        """The class name of the pipeline for the usual task."""
        return self._base.class_name

    @property
    def denoiser_name(self) -> str:
        """The class name of the denoiser."""
        return type(self._denoiser).__name__

    @property
    def max_side(self) -> int | None:
        """The longest side, in pixels, that the denoiser has positions for; None if there is no limit.

        Transformers like `SD3Transformer2DModel` have a position table of `pos_embed_max_size` patches a
        side.
        """
        max_patches = getattr(self._denoiser.config, "pos_embed_max_size", None)
        if max_patches is None:
            return None
        return int(max_patches * self._denoiser.config.patch_size * self.pixels_per_latent)

    def named(self, component: str) -> str:
        """A component as text: its name and class."""
        return f"{component} ({type(self._component(component)).__name__})"

    def dtype_of(self, component: str) -> Any:
        """The dtype of a component, or of the denoiser if the component has none."""
        return getattr(self._component(component), "dtype", self.dtype)

    def _component(self, name: str) -> Any:
        return self.modules.get(name, getattr(self._pipeline, name, None))

    def takes(self, parameter: str) -> bool:
        """Whether the call of any task has this parameter."""
        return any(one.takes(parameter) for one in self._by_task.values())

    def needs_guidance_row(self, guidance_scale: float) -> bool:
        """Whether a step at this scale is expected to have two rows, before the call is begun."""
        return guidance_scale > 1 and self.num_guided_rows == 2

    def signature_number(self, parked: ParkedCall, apart: Hashable = ()) -> int:
        """A number, 1 or above, that is equal for calls of equal signature and equal `apart`."""
        signature = (parked.signature, apart)
        if signature not in self._signature_numbers:
            if len(self._signature_numbers) >= MAX_SIGNATURES:
                self._signature_numbers.clear()  # never reused: at worst two calls do not share a pass
            self._num_signatures += 1
            self._signature_numbers[signature] = self._num_signatures
        return self._signature_numbers[signature]

    def num_steps(self, request: GenerationRequest) -> int:
        """The number of steps that its call is expected to have, before the call is begun."""
        return self._pipeline_of(request).num_steps(request)

    def check(self, request: GenerationRequest) -> None:
        """Raise `RequestInvalid` if the model does not offer the request's task, or if its call cannot have
        the request's parameters or scheduler.
        """
        for name, fault in task_faults(request.parameters, self.tasks, request.model):
            raise RequestInvalid(f"{name}: {fault}")
        if len(request.parameters.image) > 1 and not self.takes_several_images:
            raise RequestInvalid(f"image: a {self.class_name} takes only one image")
        pipeline = self._pipeline_of(request)
        self.schedulers.num_forward_passes(request.scheduler, request.num_inference_steps)
        task, model = pipeline.task, repr(request.model)
        if request.guidance_cutoff < 1 and not (self.can_cut_guidance and task not in self.uncut_tasks):
            where = f" for {task}" if task in self.uncut_tasks else ""
            raise RequestInvalid(
                f"guidance_cutoff: {model} cannot cut guidance off{where}; only 1 is accepted"
            )
        pipeline.check(request)
        if self.adapters is not None:
            self.adapters.check(request)
        elif asked_by(request):
            raise RequestInvalid(f"loras: {request.model!r} has no adapters")
        if request.step_cache > 1 and not self.can_cache(request):
            where = f" for {task}" if task in self.uncached_tasks else ""
            raise RequestInvalid(f"step_cache: {model} has no step cache{where}; only 1 is accepted")

    def can_cache(self, request: GenerationRequest) -> bool:
        """Whether this request may use a step cache."""
        return self.can_cache_steps and self._pipeline_of(request).task not in self.uncached_tasks

    def passes_to_probe(self, request: GenerationRequest) -> range:
        """The passes of a step that run different modules: two with a ControlNet, else one."""
        has_controlnet = self._pipeline_of(request).task == "control" and "controlnet" in self.modules
        return range(2 if has_controlnet else 1)

    def has_shapes_of_its_own(self, request: GenerationRequest) -> bool:
        """Whether shapes depend on more than the image's size: those of an edit include its input images."""
        return self._pipeline_of(request).task == "edit"

    def _pipeline_of(self, request: GenerationRequest) -> TaskPipeline:
        return self._by_task[task_of(request.parameters, self.tasks)]

    def begin(
        self,
        request: GenerationRequest,
        prompts: EncodedPrompts | None = None,
        *,
        guided_share: float | None = None,
        adapters: Applied = (),
    ) -> PipelineCall:
        """Begin the pipeline call of a request.

        With `prompts`, texts that the account has had encoded before are not encoded again. `adapters` are
        the request's, loaded. Raises `RequestInvalid` for a scheduler that does not fit the model, and
        `PromptInvalid` for a token that a text encoder does not know.
        """
        for field in ("prompt", "negative_prompt"):
            self._vocabularies.check(field, getattr(request, field))
        pipeline = self._pipeline_of(request)
        arguments = pipeline.arguments(request)
        num_patches = (request.width // self.pixels_per_latent) * (request.height // self.pixels_per_latent)
        scheduler = self.schedulers.make(
            request.scheduler, request.num_inference_steps, num_patches, arguments["generator"]
        )
        own_method = None
        if prompts is not None:  # the class of another task may encode differently
            texts_of = f"{request.model}/{pipeline.class_name}"
            own_method = prompts.of(request.account, texts_of, texts_order_of(adapters))
        share = request.guidance_cutoff if guided_share is None else guided_share
        return self.exchange.begin(scheduler, own_method, share, pipeline.pipeline, adapters, **arguments)

    @property
    def guidance_parameters(self) -> frozenset[str]:
        """The arguments that `guidance_scale` is passed as, one for each task."""
        return frozenset(one.guidance_parameter for one in self._by_task.values())

    def is_guided(self, request: GenerationRequest) -> bool:
        """Whether a negative prompt has an effect on this request."""
        return self._pipeline_of(request).is_guided(request)

    def readers(self, request: GenerationRequest, *, is_negative: bool = False) -> list[Reader]:
        """The tokenizers of text encoders that cut long prompts."""
        return self._pipeline_of(request).readers(request, is_negative=is_negative)
