"""The pipeline of a model for one pipeline task, and how a request becomes the arguments of its call.

It reads what a class can do from the signature of its call and from its components, never from a list of
classes. It resizes input images as diffusers does. It knows nothing of other calls or of forward passes.
"""

import hashlib
import inspect
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image

from catalogue.parameters import Value
from catalogue.pipeline_tasks import WITH_STRENGTH, PipelineTask, least_strength, num_steps_at, strength_fault
from engine.errors import RequestInvalid
from engine.pipelines.truncation import Reader
from engine.request import GenerationRequest

Inputs = Mapping[str, tuple[np.ndarray, ...]]
"""Input images by parameter name: uint8, RGB `(H, W, 3)`, a mask `(H, W)`."""

LONGEST_READ_FIRST = 1024
"""A tokenizer with a larger limit than this cuts no prompt; a pipeline may set a limit of its own."""
TRIAL_STRENGTH = 0.75
NO_IMAGES: Mapping[str, Any] = {
    "image": (),
    "mask_image": None,
    "control_image": None,
    "strength": None,
    "inputs": {},
}


class TaskPipeline:
    """A pipeline that draws `task`; `denoiser_config` is the configuration of its denoiser."""

    declared: Mapping[str, Value | None] = MappingProxyType({})
    """The defaults of the model's declared parameters; the call may lack one that keeps its default."""

    def __init__(self, task: PipelineTask, pipeline: Any, denoiser_config: Any) -> None:
        self.task = task
        self.pipeline = pipeline
        self._denoiser_config = denoiser_config
        self._parameters = inspect.signature(pipeline.__call__).parameters

    @property
    def class_name(self) -> str:
        """The class name of the pipeline."""
        return type(self.pipeline).__name__

    def takes(self, parameter: str) -> bool:
        """Whether the call has this parameter."""
        return parameter in self._parameters

    def check(self, request: GenerationRequest) -> None:
        """Raise `RequestInvalid` for parameters that the call lacks and for a strength without steps."""
        for name, value in request.parameters.pipeline_parameters.items():
            if not self.takes(name) and value != self.declared.get(name):
                raise RequestInvalid(f"pipeline_parameters/{name}: a {self.class_name} has no such parameter")
        if request.parameters.strength is not None and not self.takes("strength"):
            raise RequestInvalid(f"strength: a {self.class_name} has no such parameter")
        strength = self._strength(request)
        if strength is not None and (fault := strength_fault(strength, request.num_inference_steps)):
            raise RequestInvalid(f"strength: {fault}")

    def num_steps(self, request: GenerationRequest) -> int:
        """The number of steps that the call is expected to have, before it is begun."""
        strength = self._strength(request)
        steps = request.num_inference_steps
        return steps if strength is None else max(1, num_steps_at(strength, steps))

    def _strength(self, request: GenerationRequest) -> float | None:
        """The strength of the change to the input image; None if the call has no strength.

        If the request has none, it is the pipeline's default, or the smallest strength that leaves a step.
        """
        if self.task not in WITH_STRENGTH or not self.takes("strength"):
            return None
        if request.parameters.strength is not None:
            return request.parameters.strength
        return max(float(self._parameters["strength"].default), least_strength(request.num_inference_steps))

    def arguments(self, request: GenerationRequest) -> dict[str, Any]:
        """The arguments of the call, including a generator with the request's seed."""
        given = request.parameters.pipeline_parameters
        arguments: dict[str, Any] = {
            "prompt": request.prompt,
            "width": request.width,
            "height": request.height,
            "max_area": request.width * request.height,  # for FLUX.1 Kontext, which would draw a megapixel
            "num_inference_steps": request.num_inference_steps,
            # On the CPU, so that a seed gives the same noise on every device.
            "generator": torch.Generator("cpu").manual_seed(request.seed),
            # With a crop around the mask, only PIL output is pasted back into the whole image.
            "output_type": "pil" if self._is_cropped(request) else "np",
            "guidance_schedule": None,  # replaces Ideogram's default, which excludes a guidance scale
            "use_resolution_binning": False,  # otherwise an image is drawn at another size and resized
            **given,
            self.guidance_parameter: request.guidance_scale if request.guidance_cutoff else 1.0,
        }
        if request.negative_prompt:
            arguments["negative_prompt"] = request.negative_prompt
        elif self.guidance_parameter == "true_cfg_scale" and request.guidance_scale > 1:
            # Qwen-Image applies guidance only with a negative prompt; its authors pass a space too.
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
        """Parameters that make a request one of this task: images generated from its seed, and a strength.

        For one step the strength is 1, since a smaller one would leave no step.
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
        """The argument of the call that gets a request's `guidance_scale`.

        If a call has both `true_cfg_scale` and `guidance_scale`, the latter is an input of distilled models.
        `true_cfg_scale` is used if its default turns guidance on, as in Qwen-Image and not in FLUX.1.
        """
        default = self._defaults().get("true_cfg_scale")
        is_distilled = getattr(self._denoiser_config, "guidance_embeds", False)
        is_true = default is not None and default > 1 and not is_distilled
        return "true_cfg_scale" if is_true else "guidance_scale"

    def is_guided(self, request: GenerationRequest) -> bool:
        """Whether a negative prompt has an effect on this request."""
        if not self.takes("negative_prompt") or not request.guidance_cutoff:
            return False
        if self.takes("true_cfg_scale") and self.guidance_parameter != "true_cfg_scale":
            given = {**self._defaults(), **request.parameters.pipeline_parameters}
            return float(given.get("true_cfg_scale") or 1) > 1
        return request.guidance_scale > 1

    def readers(self, request: GenerationRequest, *, is_negative: bool = False) -> list[Reader]:
        """The tokenizers of text encoders that cut long prompts.

        CLIP has a fixed limit; for the others it is the call's `max_sequence_length`, if there is one.
        """
        tokenizers = [one for name, one in self.pipeline.components.items() if name.startswith("tokenizer")]
        # In FLUX.2 and Kandinsky 5 it is a processor that holds a tokenizer.
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
                # As in `SanaPipeline`, the tokens of the instruction do not count against the limit.
                instruction = "\n".join(given["complex_human_instruction"])
                limit += len(tokenizer.encode(instruction)) - 2
        return Reader(tokenizer, limit, name, instruction)

    def _defaults(self) -> dict[str, Any]:
        return {name: one.default for name, one in self._parameters.items() if one.default is not one.empty}


def image_arguments(
    task: PipelineTask, inputs: Inputs, takes: Collection[str], size: tuple[int, int]
) -> dict[str, Any]:
    """The image arguments of a call that has the parameters `takes` and draws `size` (width, height).

    Images to change, masks and control images are resized to `size` as diffusers' `VaeImageProcessor` does,
    without keeping their proportions. Images to edit keep their size, unless the call draws at their size.
    """
    images = inputs.get("image", ())
    if task == "image-to-image":
        return {"image": _fitted(images[0], size)}
    if task == "inpainting":
        return {"image": _fitted(images[0], size), "mask_image": _fitted_mask(inputs["mask_image"][0], size)}
    if task == "control":
        name = "control_image" if "control_image" in takes else "image"
        return {name: _fitted(inputs["control_image"][0], size)}
    if task == "edit":
        edited = [Image.fromarray(image) if "width" in takes else _fitted(image, size) for image in images]
        if "image" not in takes:
            return {"images": edited}
        return {"image": edited[0] if len(edited) == 1 else edited}
    return {}


def _fitted(image: np.ndarray, size: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(image)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def _fitted_mask(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Resize a mask; edges become gray, and the pipeline makes them black or white."""
    picture = Image.fromarray(mask)  # Lanczos would overshoot at edges
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)


def _tokenizer_name(tokenizer: Any, number: int) -> str:
    """The usual name of a tokenizer, such as `CLIP` or `T5`, from its class, or else its number."""
    name, suffix, _ = type(tokenizer).__name__.partition("Tokenizer")
    return name if name and suffix else f"{number}"


def _picture(size: tuple[int, int], seed: int) -> np.ndarray:
    """A square on a plain background in random colours, `(H, W, 3)`."""
    width, height = size
    colours = np.random.default_rng(seed).integers(0, 256, (2, 3), dtype=np.uint8)
    picture = np.full((height, width, 3), colours[0], np.uint8)
    picture[height // 4 : -height // 4, width // 4 : -width // 4] = colours[1]
    return picture


def _mask(size: tuple[int, int]) -> np.ndarray:
    """A mask `(H, W)` that is white, to be redrawn, in the right half."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[:, size[0] // 2 :] = 255
    return mask


def _id_of(pixels: np.ndarray) -> str:
    return f"file_{hashlib.sha256(pixels.tobytes()).hexdigest()}"
