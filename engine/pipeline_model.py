"""A loaded diffusers pipeline of any class, as the engine needs to know it.

Owns the exchange of its calls, and how a request becomes the arguments of its `__call__`. What a class of
pipelines can do is read off the signature of its call and its components, never from a list of classes.
"""

import inspect
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Module

from engine.buckets import UNTESTED, BucketsByShape
from engine.encoded_prompts import EncodedPrompts
from engine.errors import RequestInvalid
from engine.exchange import Exchange, is_denoiser
from engine.families.truncation import Reader
from engine.parked_call import ParkedCall
from engine.pipeline_call import PipelineCall
from engine.request import GenerationRequest, SchedulerSpec
from engine.schedulers import Schedulers
from engine.steady_stack import on_steady_stack
from engine.walks import walk_of

PIXELS_PER_LATENT = 8  # along one side, where the pipeline does not say
LONGEST_READ_FIRST = 1024
"""Tokenizers that read no more tokens than that cut a prompt; the limits of others are the pipeline's own."""

MAX_SIGNATURES = 4096


class GuidanceCutoff:
    """Ends the guidance of a call after `num_guided_steps`, by the means that diffusers gives callbacks.

    As `SDCFGCutoffCallback` and its like of `diffusers.callbacks` do, for any pipeline that has embeddings of
    both prompts in one tensor `(2, ...)`, the negative one first, and reads `_guidance_scale` at each step.
    """

    def __init__(self, num_guided_steps: float) -> None:
        self._num_guided_steps = num_guided_steps
        self._is_cut = False

    def inputs_of(self, pipeline: Any) -> list[str]:
        """The names of the tensors that the callback is given, and gives back with fewer rows."""
        inputs = getattr(pipeline, "_callback_tensor_inputs", [])
        return [name for name in inputs if "embeds" in name or name.endswith(("time_ids", "_mask"))]

    def __call__(self, pipeline: Any, step_index: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """diffusers' `callback_on_step_end`."""
        if self._is_cut or step_index + 1 < self._num_guided_steps:
            return {}
        self._is_cut = True
        pipeline._guidance_scale = 0.0
        return {name: one[-1:] for name, one in tensors.items() if one is not None and len(one) == 2}


LEFT_OUT: Mapping[str, Any] = {
    "safety_checker": None,
    "feature_extractor": None,
    "image_encoder": None,
    "requires_safety_checker": False,
    "add_watermarker": False,  # it would need another library and change the pixels
}
"""What a text-to-image pipeline is loaded without: the engine neither checks nor marks its images."""


def not_given(pipeline_class: Any) -> dict[str, Any]:
    """Those of `LEFT_OUT` that the class can be built with."""
    parameters = inspect.signature(pipeline_class.__init__).parameters
    return {name: value for name, value in LEFT_OUT.items() if name in parameters}


@dataclass(frozen=True)
class Abilities:
    """What a self-test finds out of a pipeline besides what it promises; by names of `PipelineModel`."""

    runs_alone: bool
    num_guided_rows: int
    can_cut_guidance: bool
    can_cache_steps: bool


class PipelineModel:
    """`pipeline` as diffusers has loaded it, on its device; its modules are put into `eval` mode."""

    latents_per_patch = 1
    max_side: int | None = None
    buckets: BucketsByShape = UNTESTED  # set by who has tested it
    # Set by who has tested it as well:
    runs_alone = False  # a call's image depends on the calls beside it
    num_guided_rows = 2  # of a forward pass at a scale above 1
    can_cut_guidance = False  # rows leave a call that is told so between two of its steps
    can_cache_steps = False  # rows can leave out the deep part of the denoiser

    def __init__(self, pipeline: Any) -> None:
        modules = {name: one for name, one in pipeline.components.items() if isinstance(one, Module)}
        for module in modules.values():
            module.eval().requires_grad_(False)
        self._pipeline = pipeline
        self._denoiser: Any = next(module for name, module in modules.items() if is_denoiser(name))
        self.walk: Any = walk_of(self._denoiser)
        self._parameters = inspect.signature(pipeline.__call__).parameters
        self.scheduler: Any = pipeline.scheduler
        self.schedulers = Schedulers(self.scheduler)
        self.exchange = Exchange(pipeline)
        self._signature_numbers: dict[Hashable, int] = {}
        self._num_signatures = 0
        self.device: Any = self._denoiser.device
        self.dtype: Any = self._denoiser.dtype
        self.pixels_per_latent: int = getattr(pipeline, "vae_scale_factor", PIXELS_PER_LATENT)

    @on_steady_stack
    @torch.inference_mode()
    def learn_schedulers(self, width: int, height: int) -> None:
        """Begin a call to see what the pipeline hands to its scheduler, which other classes may not take."""
        own = SchedulerSpec("default")
        request = GenerationRequest("", "a scheduler", width, height, 2, 1.0, seed=0, scheduler=own)
        scheduler = self.schedulers.make(own, request.num_inference_steps)
        call = self.exchange.begin(scheduler, **self._arguments(request))
        while call.parked is not None and not is_denoiser(call.parked.name):
            self.exchange.run([call])
        handed = scheduler.handed
        call.end()
        self.schedulers = Schedulers(self.scheduler, handed=handed)

    @property
    def abilities(self) -> Abilities:
        """What is known of it; set from an earlier start, or attribute by attribute by who tests it."""
        return Abilities(self.runs_alone, self.num_guided_rows, self.can_cut_guidance, self.can_cache_steps)

    @abilities.setter
    def abilities(self, found: Abilities) -> None:
        self.runs_alone = found.runs_alone
        self.num_guided_rows = found.num_guided_rows
        self.can_cut_guidance = found.can_cut_guidance
        self.can_cache_steps = found.can_cache_steps and self.walk is not None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its images besides its modules: the pipeline's configuration, and its scheduler's."""
        parts = {"pipeline": self._pipeline, "scheduler": self.scheduler}
        return {
            name: [
                type(part).__name__,
                {key: str(part.config[key]) for key in sorted(part.config) if key[0] != "_"},
            ]
            for name, part in parts.items()
        }

    @property
    def class_name(self) -> str:
        """The pipeline's class."""
        return type(self._pipeline).__name__

    @property
    def denoiser_name(self) -> str:
        """The class of its denoiser."""
        return type(self._denoiser).__name__

    def takes(self, parameter: str) -> bool:
        """Whether the pipeline's call has this parameter."""
        return parameter in self._parameters

    def needs_guidance_row(self, guidance_scale: float) -> bool:
        """Whether a step at this scale is expected to have two rows, before the call itself has said so."""
        return guidance_scale > 1 and self.num_guided_rows == 2

    def signature_number(self, parked: ParkedCall) -> int:
        """A number from 1 on that is the same for parked calls of equal signature."""
        if parked.signature not in self._signature_numbers:
            if len(self._signature_numbers) >= MAX_SIGNATURES:
                self._signature_numbers.clear()  # numbers go on: two calls may miss a pass, and none is wrong
            self._num_signatures += 1
            self._signature_numbers[parked.signature] = self._num_signatures
        return self._signature_numbers[parked.signature]

    def check(self, request: GenerationRequest) -> None:
        """Raise `RequestInvalid` for what the pipeline's call has no parameter for."""
        if request.guidance_cutoff < 1 and not self.can_cut_guidance:
            raise RequestInvalid(
                f"guidance_cutoff: {request.model!r} is guided to the end; only 1 is accepted"
            )
        for name in request.parameters.pipeline_parameters:
            if not self.takes(name):
                raise RequestInvalid(f"pipeline_parameters/{name}: a {self.class_name} has no such parameter")
        if request.step_cache > 1 and not self.can_cache_steps:
            raise RequestInvalid(f"step_cache: {request.model!r} has no step cache; only 1 is accepted")

    def begin(self, request: GenerationRequest, prompts: EncodedPrompts | None = None) -> PipelineCall:
        """Begin the request's call; raises `RequestInvalid` for a scheduler that the model cannot have.

        With `prompts` its texts are not encoded where its account has had the same encoded before.
        """
        arguments = self._arguments(request)
        num_patches = (request.width // self.pixels_per_latent) * (request.height // self.pixels_per_latent)
        scheduler = self.schedulers.make(
            request.scheduler, request.num_inference_steps, num_patches, arguments["generator"]
        )
        own_method = prompts.of(request.account, request.model) if prompts is not None else None
        return self.exchange.begin(scheduler, own_method, **arguments)

    def _arguments(self, request: GenerationRequest) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "prompt": request.prompt,
            "width": request.width,
            "height": request.height,
            "num_inference_steps": request.num_inference_steps,
            # On the CPU: a seed means the same numbers on every device.
            "generator": torch.Generator("cpu").manual_seed(request.seed),
            "output_type": "np",
            "use_resolution_binning": False,  # else an image is drawn at another size, and resized
            **request.parameters.pipeline_parameters,
            self.guidance_parameter: request.guidance_scale if request.guidance_cutoff else 1.0,
        }
        if request.guidance_cutoff < 1:
            cutoff = GuidanceCutoff(request.guidance_cutoff * request.num_inference_steps)
            arguments["callback_on_step_end"] = cutoff
            arguments["callback_on_step_end_tensor_inputs"] = cutoff.inputs_of(self._pipeline)
        if request.negative_prompt:
            arguments["negative_prompt"] = request.negative_prompt
        elif self.guidance_parameter == "true_cfg_scale" and request.guidance_scale > 1:
            # As the authors of Qwen-Image do: without a negative prompt there is no guidance.
            arguments["negative_prompt"] = " "
        if request.scheduler.eta:
            arguments["eta"] = request.scheduler.eta
        return {name: value for name, value in arguments.items() if self.takes(name)}

    @property
    def guidance_parameter(self) -> str:
        """The argument that a request's `guidance_scale` is.

        Where a call has two, the one of that name is an input of models that were distilled to take one.
        """
        is_distilled = getattr(self._denoiser.config, "guidance_embeds", False)
        return "true_cfg_scale" if self.takes("true_cfg_scale") and not is_distilled else "guidance_scale"

    def readers(self) -> list[Reader]:
        """The tokenizers whose encoders read a beginning of the prompt alone."""
        tokenizers = [one for name, one in self._pipeline.components.items() if name.startswith("tokenizer")]
        found = [one for one in tokenizers if one is not None]
        return [
            Reader(one, one.model_max_length, f"{number}" if len(found) > 1 else "")
            for number, one in enumerate(found, start=1)
            if getattr(one, "model_max_length", LONGEST_READ_FIRST + 1) <= LONGEST_READ_FIRST
        ]
