"""Runs the calls of diffusers pipelines: to their first step, step by step in company, and to their images.

Owns no call and no order; the engine says who runs. It knows the exchange, and nothing of what a pipeline
does between two forward passes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from engine.attempt import translate
from engine.errors import DeviceLost, EngineError, GenerationImpossible, NumericError
from engine.generation import Generation
from engine.partial_forwards.cached_pass import CachedPass
from engine.pipelines.encoded_prompts import EncodedPrompts
from engine.pipelines.pipeline_model import PipelineModel
from engine.pipelines.prompt_notation import notation_in
from engine.pipelines.truncation import unread
from engine.policy.buckets import at
from engine.policy.seen_costs import SeenCosts
from engine.request import RequestWarning


class Runner:
    """Runs generations of `models`; what they cost is written to its `seen_costs`.

    `after_pass` is called after each forward pass of a decoding, of which there can be many.
    """

    def __init__(
        self,
        models: Mapping[str, PipelineModel],
        clock: Callable[[], float] = time.monotonic,
        after_pass: Callable[[], None] = lambda: None,
    ) -> None:
        self._models = models
        self._after_pass = after_pass
        self._clock = clock
        self._prompts = EncodedPrompts()
        self.seen_costs = SeenCosts()

    def encode(self, generation: Generation) -> None:
        """Begin a generation's call and run it up to its first denoising step; anew if it is tried twice."""
        started_at = self._clock()
        generation.begin_call(self._prompts)
        try:
            self._run_alone(generation)
        except Exception:
            generation.drop_tensors()  # before memory is freed for the next try
            raise
        if generation.call.parked is None:
            raise GenerationImpossible("the pipeline's call ended without a denoising step")
        generation.warnings = tuple(self._warnings(generation))
        generation.encoding_seconds = self._clock() - started_at
        self.seen_costs.saw_encoding(generation.key, generation.encoding_seconds)

    def _run_alone(self, generation: Generation) -> None:
        """Run a call through encoders and decoders, by itself, until it waits for a denoiser or has ended."""
        self._models[generation.key.model].exchange.run_to_denoiser(generation.call)
        if generation.call.error is not None:
            raise generation.call.error
        generation.note_call()

    def _warnings(self, generation: Generation) -> list[RequestWarning]:
        request, model = generation.request, self._models[generation.key.model]
        warnings = []
        texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        for name, text in texts.items():
            cut = unread(text, model.readers(request, is_negative=name == "negative_prompt")) if text else ()
            warnings += [RequestWarning("prompt_cut", name, sentence) for sentence in cut]
            if sentence := notation_in(text):
                warnings.append(RequestWarning("notation_unread", name, sentence))
        if request.negative_prompt and not model.is_guided(request):
            unused = "it has no effect without guidance"
            warnings.append(RequestWarning("negative_prompt_unused", "negative_prompt", unused))
        for adapter, _ in generation.adapters:
            if adapter.num_unread:
                num_written = adapter.num_layers + adapter.num_unread
                partly = f"{adapter.name!r}: this model has {adapter.num_layers} of its {num_written} layers"
                warnings.append(RequestWarning("lora_partial", "loras", partly))
        if model.runs_alone:
            alone = "not batched: images of this model depend on their company, so it draws one at a time"
            warnings.append(RequestWarning("not_batched", "model", alone))
        return warnings

    def step(self, members: Sequence[Generation]) -> dict[Generation, EngineError]:
        """Make the forward pass that all members wait for; returns those that failed after it, and why."""
        started_at = self._clock()
        # Whole steps first, and in these rows of the same adapters side by side; else as they came.
        members = sorted(members, key=lambda member: (not member.is_full_step, member.adapters_order))
        key, num_rows = members[0].key, sum(member.num_rows for member in members)
        num_full = sum(member.num_rows for member in members if member.is_full_step)
        model = self._models[key.model]
        buckets = at(model.buckets, key.latent_height, key.latent_width)
        # What depends on its company may depend on padding as well.
        bucket_rows = (lambda rows: rows) if model.runs_alone else buckets.rows
        bucket = bucket_rows(num_rows)
        has_cache = any(member.step_cache.is_used for member in members)
        through = CachedPass(members, model.partial_forward, bucket_rows) if has_cache else None
        not_finite = model.exchange.run([member.call for member in members], bucket, through)
        failures: dict[Generation, EngineError] = {}
        for member in members:
            member.commit_step(len(members))
            if member.call in not_finite:
                failures[member] = NumericError()
            elif member.call.error is not None:
                failures[member] = _failure(member.call.error)
            elif (failure := self._go_on(member)) is not None:
                failures[member] = failure
        full_share = num_full / num_rows
        self.seen_costs.saw_step(key, bucket, self._clock() - started_at, full_share=full_share)
        return failures

    def _go_on(self, member: Generation) -> EngineError | None:
        """Read how far a member's call is; encoders between two of its steps run at once."""
        call = member.call
        if call.parked is None or call.num_steps_done >= (call.num_steps or member.num_steps):
            member.note_call()
            return None
        try:
            self._run_alone(member)
        except Exception as error:  # as at a step: it is this member's alone
            return _failure(error)
        return None

    def decode(self, generation: Generation) -> np.ndarray:
        """The image, uint8 `(H, W, 3)`, rounded as diffusers' `VaeImageProcessor` rounds.

        What else the pipeline denoises after its decoder, as refiners do, runs by itself as well; raises
        `Canceled` or `DeadlineExceeded` where nobody waits for it any more.
        """
        started_at = self._clock()
        exchange, call = self._models[generation.key.model].exchange, generation.call
        while call.parked is not None:
            if (reason := generation.given_up(self._clock())) is not None:
                raise reason
            if exchange.run([call]):
                raise NumericError
            self._after_pass()
        if call.error is not None:
            raise call.error
        image = first_image(call.result)
        if not np.isfinite(image).all():
            raise NumericError("the decoded image is not finite")
        request = generation.request
        if image.shape[:2] != (request.height, request.width):
            drawn = f"{image.shape[1]}x{image.shape[0]}"
            raise GenerationImpossible(
                f"width, height: asked for {request.width}x{request.height}, the pipeline draws {drawn}"
            )
        self.seen_costs.saw_decoding(generation.key, self._clock() - started_at)
        return image_of(call.result)

    def free(self, running: Sequence[Generation] = ()) -> None:
        """Give device memory back after an out-of-memory error: what merging, prompts and step caches keep.

        What is `running` needs the last again, to the bit, so that goes to main memory meanwhile.
        """
        self._prompts.clear()
        for generation in running:
            generation.step_cache.leave_device()
        for model in self._models.values():
            model.exchange.free()
            if model.adapters is not None:
                model.adapters.free()
        if any(model.device.type == "cuda" for model in self._models.values()):
            torch.cuda.empty_cache()


def first_image(output: Any) -> np.ndarray:
    """The first image of what a pipeline returned, 0 to 1; Kandinsky 5 calls its field `image`."""
    images = output.images if hasattr(output, "images") else output.image
    while isinstance(images, list):
        images = images[0]
    if isinstance(images, Image):
        return np.asarray(images.convert("RGB"), np.float32) / 255
    image: np.ndarray = np.asarray(images)
    return image[0] if image.ndim > 3 else image


def image_of(output: Any) -> np.ndarray:
    """The same as uint8 `(H, W, 3)`, rounded as diffusers' `VaeImageProcessor` rounds."""
    return (first_image(output).clip(0, 1) * 255).round().astype(np.uint8)


def _failure(error: Exception) -> EngineError:
    """The engine's word for what ended one call after its pass; raises `DeviceLost`, which ends all calls."""
    failure = translate(error)
    if isinstance(failure, DeviceLost):
        raise failure
    failure.__traceback__ = failure.__context__ = None
    return failure
