"""A loaded diffusers pipeline of any class, as the engine needs to know it.

Owns the exchange of its calls, and how a request becomes the arguments of its `__call__`. What a class of
pipelines can do is read off the signature of its call and its components, never from a list of classes.
"""

import inspect
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.nn import Module

from engine.buckets import UNTESTED, BucketsByShape
from engine.components import denoiser_among
from engine.encoded_prompts import EncodedPrompts
from engine.errors import LoadError, RequestInvalid
from engine.exchange import Exchange
from engine.loaded_pipeline import Vocabularies
from engine.parked_call import ParkedCall
from engine.pipeline_call import PipelineCall
from engine.request import GenerationRequest, SchedulerSpec
from engine.schedulers import Schedulers
from engine.steady_stack import on_steady_stack
from engine.text_padding import TextPadding
from engine.truncation import Reader
from engine.walks import walk_of

PIXELS_PER_LATENT = 8  # along one side, where the pipeline does not say
LONGEST_READ_FIRST = 1024
"""Tokenizers that read no more tokens than that cut a prompt; the limits of others are the pipeline's own."""

MAX_SIGNATURES = 4096


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
    takes_float_timesteps: bool
    text_padding: TextPadding | None = None

    @classmethod
    def of_plain(cls, document: Mapping[str, Any]) -> Self:
        """What `asdict` made of one, after a way through JSON; raises `TypeError` or `ValueError`."""
        padding = document.get("text_padding")
        return cls(**{**document, "text_padding": None if padding is None else TextPadding.of_plain(padding)})


class PipelineModel:
    """`pipeline` as diffusers has loaded it, on its device; its modules are put into `eval` mode."""

    buckets: BucketsByShape = UNTESTED  # set by who has tested it
    # Set by who has tested it as well:
    runs_alone = False  # a call's image depends on the calls beside it
    num_guided_rows = 2  # of a forward pass at a scale above 1
    can_cut_guidance = False  # rows leave a call that is told so between two of its steps
    can_cache_steps = False  # rows can leave out the deep part of the denoiser

    def __init__(self, pipeline: Any) -> None:
        self.modules = {name: one for name, one in pipeline.components.items() if isinstance(one, Module)}
        for module in self.modules.values():
            module.eval().requires_grad_(False)
        self._pipeline = pipeline
        self._denoiser: Any = self.modules[denoiser_among(list(self.modules)) or ""]
        self.walk: Any = walk_of(self._denoiser)
        self._parameters = inspect.signature(pipeline.__call__).parameters
        self.scheduler: Any = pipeline.scheduler
        self.schedulers = Schedulers(self.scheduler)
        self._vocabularies = Vocabularies(pipeline)
        self.exchange = Exchange(pipeline)
        self._signature_numbers: dict[Hashable, int] = {}
        self._num_signatures = 0
        self.device: Any = self._denoiser.device
        self.dtype: Any = self._denoiser.dtype
        self.pixels_per_latent: int = getattr(pipeline, "vae_scale_factor", PIXELS_PER_LATENT)
        self.side_multiple: int = self.pixels_per_latent  # set by who knows a larger one

    @on_steady_stack
    @torch.inference_mode()
    def learn_schedulers(self, width: int, height: int) -> None:
        """Begin a call to see what the pipeline hands to its scheduler, which other classes may not take.

        Raises `LoadError` where its scheduler cannot be set up, or its steps are not finite.
        """
        own = SchedulerSpec("default")
        request = GenerationRequest("", "a scheduler", width, height, 2, 1.0, seed=0, scheduler=own)
        try:
            scheduler = self.schedulers.make(own, request.num_inference_steps)
        except RequestInvalid as error:
            raise LoadError(f"its {type(self.scheduler).__name__} cannot be used ({error})") from error
        call = self.exchange.begin(scheduler, **self._arguments(request))
        self.exchange.run_to_denoiser(call)
        # A call that has failed has let go of its scheduler: the first image says why.
        handed: frozenset[str] = getattr(scheduler, "handed", frozenset())
        call.end()
        self.schedulers = Schedulers(self.scheduler, handed=handed)

    @property
    def abilities(self) -> Abilities:
        """What is known of it; set from an earlier start, or attribute by attribute by who tests it."""
        return Abilities(
            self.runs_alone,
            self.num_guided_rows,
            self.can_cut_guidance,
            self.can_cache_steps,
            self.exchange.takes_float_timesteps,
            self.text_padding,
        )

    @abilities.setter
    def abilities(self, found: Abilities) -> None:
        self.runs_alone = found.runs_alone
        self.num_guided_rows = found.num_guided_rows
        self.can_cut_guidance = found.can_cut_guidance
        self.can_cache_steps = found.can_cache_steps and self.walk is not None
        self.exchange.takes_float_timesteps = found.takes_float_timesteps
        self.text_padding = found.text_padding

    @property
    def text_padding(self) -> TextPadding | None:
        """What texts of different lengths are padded with; set by who has tested it."""
        return self.exchange.text_padding

    @text_padding.setter
    def text_padding(self, found: TextPadding | None) -> None:
        self.exchange.text_padding = found

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

    @property
    def max_side(self) -> int | None:
        """The longest side, in pixels, that its denoiser has positions for; None where it has no limit.

        Transformers like `SD3Transformer2DModel` learn a table of positions of `pos_embed_max_size` patches.
        """
        max_patches = getattr(self._denoiser.config, "pos_embed_max_size", None)
        if max_patches is None:
            return None
        return int(max_patches * self._denoiser.config.patch_size * self.pixels_per_latent)

    def named(self, component: str) -> str:
        """A component by its name and its class."""
        return f"{component} ({type(getattr(self._pipeline, component, None)).__name__})"

    def dtype_of(self, component: str) -> Any:
        """The dtype of a component; that of the denoiser where it has none."""
        return getattr(getattr(self._pipeline, component, None), "dtype", self.dtype)

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
        """Raise `RequestInvalid` for what the pipeline's call has no parameter for, and for its scheduler."""
        self.schedulers.num_forward_passes(request.scheduler, request.num_inference_steps)
        if request.guidance_cutoff < 1 and not self.can_cut_guidance:
            raise RequestInvalid(
                f"guidance_cutoff: {request.model!r} is guided to the end; only 1 is accepted"
            )
        for name in request.parameters.pipeline_parameters:
            if not self.takes(name):
                raise RequestInvalid(f"pipeline_parameters/{name}: a {self.class_name} has no such parameter")
        if request.step_cache > 1 and not self.can_cache_steps:
            raise RequestInvalid(f"step_cache: {request.model!r} has no step cache; only 1 is accepted")

    def begin(
        self,
        request: GenerationRequest,
        prompts: EncodedPrompts | None = None,
        *,
        guided_share: float | None = None,
    ) -> PipelineCall:
        """Begin the request's call; raises `RequestInvalid` for a scheduler that the model cannot have.

        Raises `PromptInvalid` for a token that a text encoder does not know. With `prompts` its texts are not
        encoded where its account has had the same encoded before.
        """
        for field in ("prompt", "negative_prompt"):
            self._vocabularies.check(field, getattr(request, field))
        arguments = self._arguments(request)
        num_patches = (request.width // self.pixels_per_latent) * (request.height // self.pixels_per_latent)
        scheduler = self.schedulers.make(
            request.scheduler, request.num_inference_steps, num_patches, arguments["generator"]
        )
        own_method = prompts.of(request.account, request.model) if prompts is not None else None
        share = request.guidance_cutoff if guided_share is None else guided_share
        return self.exchange.begin(scheduler, own_method, share, **arguments)

    def _arguments(self, request: GenerationRequest) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "prompt": request.prompt,
            "width": request.width,
            "height": request.height,
            "num_inference_steps": request.num_inference_steps,
            # On the CPU: a seed means the same numbers on every device.
            "generator": torch.Generator("cpu").manual_seed(request.seed),
            "output_type": "np",
            "guidance_schedule": None,  # Ideogram's default, which excludes a scale
            "use_resolution_binning": False,  # else an image is drawn at another size, and resized
            **request.parameters.pipeline_parameters,
            self.guidance_parameter: request.guidance_scale if request.guidance_cutoff else 1.0,
        }
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

        Where a call has two, the one of that name is an input of models that were distilled to take one, and
        the other is the model's guidance if it is in use by default, as for Qwen-Image and not for FLUX.1.
        """
        default = self._defaults().get("true_cfg_scale")
        is_distilled = getattr(self._denoiser.config, "guidance_embeds", False)
        is_true = default is not None and default > 1 and not is_distilled
        return "true_cfg_scale" if is_true else "guidance_scale"

    def is_guided(self, request: GenerationRequest) -> bool:
        """Whether a negative prompt has any effect on this request."""
        if not self.takes("negative_prompt") or not request.guidance_cutoff:
            return False
        if self.takes("true_cfg_scale") and self.guidance_parameter != "true_cfg_scale":
            given = {**self._defaults(), **request.parameters.pipeline_parameters}
            return float(given.get("true_cfg_scale") or 1) > 1
        return request.guidance_scale > 1

    def readers(self, request: GenerationRequest, *, is_negative: bool = False) -> list[Reader]:
        """The tokenizers whose encoders read a beginning of the prompt alone.

        CLIP's limit is its own; that of the others is the call's `max_sequence_length`, if it has one.
        """
        tokenizers = [one for name, one in self._pipeline.components.items() if name.startswith("tokenizer")]
        # FLUX.2 and Kandinsky 5 have a processor there, which holds a tokenizer.
        found = [getattr(one, "tokenizer", one) for one in tokenizers if one is not None]
        names = [_tokenizer_name(one, number) for number, one in enumerate(found, start=1)]
        has_several = len(set(names)) > 1
        readers = [
            self._reader(one, name if has_several else "", request, is_negative=is_negative)
            for one, name in zip(found, names, strict=True)
        ]
        return [one for one in readers if one.limit <= LONGEST_READ_FIRST]

    def _reader(self, tokenizer: Any, name: str, request: GenerationRequest, *, is_negative: bool) -> Reader:
        limit, instruction = getattr(tokenizer, "model_max_length", LONGEST_READ_FIRST + 1), ""
        given = {**self._defaults(), **request.parameters.pipeline_parameters}
        if "CLIP" not in type(tokenizer).__name__:
            limit = min(limit, given.get("max_sequence_length") or limit)
            if given.get("complex_human_instruction") and not is_negative:
                # As `SanaPipeline` counts: the text has its own tokens behind those of the instruction.
                instruction = "\n".join(given["complex_human_instruction"])
                limit += len(tokenizer.encode(instruction)) - 2
        return Reader(tokenizer, limit, name, instruction)

    def _defaults(self) -> dict[str, Any]:
        return {name: one.default for name, one in self._parameters.items() if one.default is not one.empty}


def _tokenizer_name(tokenizer: Any, number: int) -> str:
    """What its users call its kind, `CLIP` or `T5`, where its class says so; else its number."""
    name, suffix, _ = type(tokenizer).__name__.partition("Tokenizer")
    return name if name and suffix else f"{number}"
