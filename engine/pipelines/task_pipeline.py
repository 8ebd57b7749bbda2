"""A pipeline of a loaded model for one pipeline task: how a request becomes the arguments of its call.

What its class can do is read off the signature of its call and its components, never from a list of classes.
It knows no other call, and nothing of forward passes.
"""

import hashlib
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from catalogue.parameters import Value
from catalogue.pipeline_tasks import WITH_STRENGTH, PipelineTask, least_strength, num_steps_at, strength_fault
from engine.errors import RequestInvalid
from engine.pipelines.input_images import image_arguments
from engine.pipelines.truncation import Reader
from engine.request import GenerationRequest

LONGEST_READ_FIRST = 1024
"""Tokenizers that read no more tokens than that cut a prompt; the limits of others are the pipeline's own."""
TRIAL_STRENGTH = 0.75
NO_IMAGES: Mapping[str, Any] = {
    "image": (),
    "mask_image": None,
    "control_image": None,
    "strength": None,
    "inputs": {},
}


class TaskPipeline:
    """`pipeline` as it draws `task` with a denoiser of this configuration."""

    declared: Mapping[str, Value | None] = MappingProxyType({})
    """The defaults of the parameters that the model declares: one that the call does not take is left out."""

    def __init__(self, task: PipelineTask, pipeline: Any, denoiser_config: Any) -> None:
        self.task = task
        self.pipeline = pipeline
        self._denoiser_config = denoiser_config
        self._parameters = inspect.signature(pipeline.__call__).parameters

    @property
    def class_name(self) -> str:
        """The pipeline's class."""
        return type(self.pipeline).__name__

    def takes(self, parameter: str) -> bool:
        """Whether the call has this parameter."""
        return parameter in self._parameters

    def check(self, request: GenerationRequest) -> None:
        """Raise `RequestInvalid` for what the call has no parameter for, and for a strength without steps."""
        for name, value in request.parameters.pipeline_parameters.items():
            if not self.takes(name) and value != self.declared.get(name):
                raise RequestInvalid(f"pipeline_parameters/{name}: a {self.class_name} has no such parameter")
        if request.strength is not None and not self.takes("strength"):
            raise RequestInvalid(f"strength: a {self.class_name} takes none")
        strength = self._strength(request)
        if strength is not None and (fault := strength_fault(strength, request.num_inference_steps)):
            raise RequestInvalid(f"strength: {fault}")

    def num_steps(self, request: GenerationRequest) -> int:
        """How many steps the call is expected to have, before it has said so itself."""
        strength = self._strength(request)
        steps = request.num_inference_steps
        return steps if strength is None else max(1, num_steps_at(strength, steps))

    def _strength(self, request: GenerationRequest) -> float | None:
        """How far it changes the image of this request; None where it does not begin with one.

        Where the request does not say, it is the pipeline's own, or as much as leaves a step.
        """
        if self.task not in WITH_STRENGTH or not self.takes("strength"):
            return None
        if request.strength is not None:
            return request.strength
        return max(float(self._parameters["strength"].default), least_strength(request.num_inference_steps))

    def arguments(self, request: GenerationRequest) -> dict[str, Any]:
        """The arguments of the call, with a generator of the request's seed."""
        given = request.parameters.pipeline_parameters
        arguments: dict[str, Any] = {
            "prompt": request.prompt,
            "width": request.width,
            "height": request.height,
            "max_area": request.width * request.height,  # Kontext's, which else draws a megapixel
            "num_inference_steps": request.num_inference_steps,
            # On the CPU: a seed means the same numbers on every device.
            "generator": torch.Generator("cpu").manual_seed(request.seed),
            # What was cropped to its mask is pasted into the whole image by PIL, and by nothing else.
            "output_type": "pil" if self._is_cropped(request) else "np",
            "guidance_schedule": None,  # Ideogram's default, which excludes a scale
            "use_resolution_binning": False,  # else an image is drawn at another size, and resized
            **given,
            self.guidance_parameter: request.guidance_scale if request.guidance_cutoff else 1.0,
        }
        if request.negative_prompt:
            arguments["negative_prompt"] = request.negative_prompt
        elif self.guidance_parameter == "true_cfg_scale" and request.guidance_scale > 1:
            # As the authors of Qwen-Image do: without a negative prompt there is no guidance.
            arguments["negative_prompt"] = " "
        if request.scheduler.eta:
            arguments["eta"] = request.scheduler.eta
        if (strength := self._strength(request)) is not None:
            arguments["strength"] = strength
        arguments |= image_arguments(
            self.task, request.inputs, self._parameters, (request.width, request.height)
        )
        return {name: value for name, value in arguments.items() if self.takes(name)}

    def _is_cropped(self, request: GenerationRequest) -> bool:
        crop = request.parameters.pipeline_parameters.get("padding_mask_crop")
        return crop is not None and self.takes("padding_mask_crop")

    def trial_images(self, request: GenerationRequest, *, num_images: int = 1) -> dict[str, Any]:
        """What makes a request one of this task: made images, which its seed chooses, and a strength.

        With no more than one step the strength is 1, since a smaller one would leave none.
        """
        size = (request.width, request.height)
        if self.task == "text-to-image":
            return dict(NO_IMAGES)
        pictures = tuple(_picture(size, request.seed + number) for number in range(num_images))
        if self.task == "control":
            inputs: dict[str, tuple[np.ndarray, ...]] = {"control_image": pictures}
            return {**NO_IMAGES, "control_image": _id_of(pictures[0]), "inputs": inputs}
        strength = None
        if self.task in WITH_STRENGTH and self.takes("strength"):
            strength = TRIAL_STRENGTH if request.num_inference_steps > 1 else 1.0
        given = {**NO_IMAGES, "image": tuple(map(_id_of, pictures)), "strength": strength}
        if self.task != "inpainting":
            return {**given, "inputs": {"image": pictures}}
        mask = _mask(size)
        return {**given, "mask_image": _id_of(mask), "inputs": {"image": pictures, "mask_image": (mask,)}}

    @property
    def guidance_parameter(self) -> str:
        """The argument that a request's `guidance_scale` is.

        Where a call has two, the one of that name is an input of models that were distilled to take one, and
        the other is the model's guidance if it is in use by default, as for Qwen-Image and not for FLUX.1.
        """
        default = self._defaults().get("true_cfg_scale")
        is_distilled = getattr(self._denoiser_config, "guidance_embeds", False)
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
        tokenizers = [one for name, one in self.pipeline.components.items() if name.startswith("tokenizer")]
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


def _picture(size: tuple[int, int], seed: int) -> np.ndarray:
    """A square on a plain background, in colours that the seed chooses, `(H, W, 3)`."""
    width, height = size
    colours = np.random.default_rng(seed).integers(0, 256, (2, 3), dtype=np.uint8)
    picture = np.full((height, width, 3), colours[0], np.uint8)
    picture[height // 4 : -height // 4, width // 4 : -width // 4] = colours[1]
    return picture


def _mask(size: tuple[int, int]) -> np.ndarray:
    """The right half is drawn anew, `(H, W)`."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[:, size[0] // 2 :] = 255
    return mask


def _id_of(pixels: np.ndarray) -> str:
    return f"file_{hashlib.sha256(pixels.tobytes()).hexdigest()}"
