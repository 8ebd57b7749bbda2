"""Runs generations on their models: encodes their prompts, steps them together, and decodes their images.

It keeps no generations and decides no order: the engine passes it the generations to run. It uses the
exchange, and does not know what a pipeline does between two forward passes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from catalogue.warnings import RequestWarning
from engine.adapters.adapters import warnings_of
from engine.device_work import translate
from engine.errors import DeviceLost, EngineError, GenerationImpossible, NumericError
from engine.generation import Generation
from engine.partial_forwards import fitting
from engine.pipelines.encoded_prompts import EncodedPrompts
from engine.pipelines.pipeline_model import PipelineModel
from engine.pipelines.prompt_notation import notation_in
from engine.pipelines.truncation import unread
from engine.policy.buckets import at
from engine.policy.seen_costs import SeenCosts


class Runner:
    """Runs generations of `models` and records how long they take in `seen_costs`.

    `after_pass` is called after each forward pass while decoding, of which there can be many.
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
        """Begin the pipeline call and run it to its first denoising step; a second try begins a new call."""
        started_at = self._clock()
        generation.begin_call(self._prompts)
        try:
            self._run_alone(generation)
        except Exception:
            generation.drop_tensors()  # before memory is freed for the next try
            raise
        if generation.call.parked is None:
            raise GenerationImpossible("the pipeline call ended without a denoising step")
        generation.warnings = tuple(self._warnings(generation))
        generation.encoding_seconds = self._clock() - started_at
        self.seen_costs.saw_encoding(generation.key, generation.encoding_seconds)

    def _run_alone(self, generation: Generation) -> None:
        """Run the call alone through encoders until it waits for a denoiser or ends; raises its error."""
        self._models[generation.key.model].exchange.run_to_denoiser(generation.call)
        if generation.call.error is not None:
            raise generation.call.error
        generation.read_call()

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
            unused = "a negative prompt has no effect without guidance"
            warnings.append(RequestWarning("negative_prompt_unused", "negative_prompt", unused))
        warnings += warnings_of(generation.adapters)
        if model.runs_alone:
            alone = (
                "not batched: this model's images depend on what shares a batch, so it draws one at a time"
            )
            warnings.append(RequestWarning("not_batched", "model", alone))
        return warnings

    def step(self, members: Sequence[Generation]) -> dict[Generation, EngineError]:
        """Make the forward pass that all members wait for; returns errors of those that failed after it."""
        started_at = self._clock()
        # Full steps first, and rows with the same adapters side by side; the sort is stable.
        members = sorted(members, key=lambda member: (not member.is_full_step, member.adapters_order))
        key, num_rows = members[0].key, sum(member.num_rows for member in members)
        num_full = sum(member.num_rows for member in members if member.is_full_step)
        model = self._models[key.model]
        buckets = at(model.buckets, key.latent_height, key.latent_width)
        # A model whose images depend on other rows may also depend on padding.
        bucket_rows = (lambda rows: rows) if model.runs_alone else buckets.rows
        bucket = bucket_rows(num_rows)
        has_cache = any(member.step_cache.is_used for member in members)
        through = _CachedPass(members, model.partial_forward, bucket_rows) if has_cache else None
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
        """Update the member from its call, and run any encoders before its next step."""
        call = member.call
        if call.parked is None or call.num_steps_done >= (call.num_steps or member.num_steps):
            member.read_call()
            return None
        try:
            self._run_alone(member)
        except Exception as error:  # as with an error in a step, only this member ends
            return _failure(error)
        return None

    def decode(self, generation: Generation) -> np.ndarray:
        """Run the call to its end and return the image, uint8 `(H, W, 3)`.

        Further denoising after the decoder, as by refiners, runs here too, without other members. Raises
        `Canceled` or `DeadlineExceeded` between two passes.
        """
        started_at = self._clock()
        exchange, call = self._models[generation.key.model].exchange, generation.call
        while call.parked is not None:
            if (reason := generation.reason_to_end(self._clock())) is not None:
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
                f"width, height: {request.width}x{request.height} requested, but the pipeline drew {drawn}"
            )
        self.seen_costs.saw_decoding(generation.key, self._clock() - started_at)
        return image_of(call.result)

    def free(self, running: Sequence[Generation] = ()) -> None:
        """Free device memory after an out-of-memory error: cached prompts, merged tensors, unused adapters.

        The step caches of `running` generations are still needed, so they are moved to main memory.
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


class _CachedPass:
    """A forward pass in which some members' steps are cached, to be passed to `Exchange.run` as `forward`.

    Full rows come first, then cached rows, then padding, so that the inner blocks and the whole pass each run
    at a bucket: `bucket_rows` gives the bucket for a number of rows.
    """

    def __init__(
        self, members: Sequence[Generation], partial_forward: Any, bucket_rows: Callable[[int], int]
    ) -> None:
        self._members = members
        self._partial_forward = partial_forward
        self._num_full = sum(member.num_rows for member in members if member.is_full_step)
        self._num_full_rows = bucket_rows(self._num_full)

    def __call__(self, arguments: dict[str, Any]) -> tuple[Tensor]:
        """The output for the merged arguments; keeps the features of full rows in their step caches."""
        named = fitting(self._partial_forward, arguments)
        first = next(iter(arguments.values()))
        output, new = self._partial_forward.predict(
            **named, num_full_rows=self._num_full_rows, features=self._features(len(first), first.device)
        )
        start = 0
        for member in self._members:
            if member.is_full_step and member.step_cache.is_used:
                member.step_cache.keep(new[start : start + member.num_rows], is_negative=_is_second(member))
            start += member.num_rows
        return (output,)

    def _features(self, num_rows: int, device: torch.device) -> Tensor | None:
        """The features `(N, ...)` for the cached rows and the padding after them, if there are any."""
        # If guidance was cut off since, the remaining row is the last one, with the prompt.
        kept = [
            member.step_cache.kept(is_negative=_is_second(member))[-member.num_rows :]
            for member in self._members
            if not member.is_full_step
        ]
        if not kept:
            return None
        features = torch.cat([one.to(device, non_blocking=True) for one in kept])
        num_padding = num_rows - self._num_full - len(features)
        return torch.cat([features, features[-1:].expand(num_padding, *features.shape[1:])])


def _is_second(member: Generation) -> bool:
    """Whether this is the second of two passes of a guided step; each pass has its own features."""
    if member.pass_in_step > 1:
        raise TypeError("a step cache cannot be used with more than two passes per step")
    return member.pass_in_step == 1


def first_image(output: Any) -> np.ndarray:
    """The first image that a pipeline returned, as floats 0 to 1. Kandinsky 5 calls its field `image`."""
    images = output.images if hasattr(output, "images") else output.image
    while isinstance(images, list):
        images = images[0]
    if isinstance(images, Image):
        return np.asarray(images.convert("RGB"), np.float32) / 255
    image: np.ndarray = np.asarray(images)
    return image[0] if image.ndim > 3 else image


def image_of(output: Any) -> np.ndarray:
    """The first image as uint8 `(H, W, 3)`, rounded as diffusers' `VaeImageProcessor` rounds."""
    return (first_image(output).clip(0, 1) * 255).round().astype(np.uint8)


def _failure(error: Exception) -> EngineError:
    """Translate an error that ended one call after its pass. `DeviceLost` is raised: it ends all calls."""
    failure = translate(error)
    if isinstance(failure, DeviceLost):
        raise failure
    failure.__traceback__ = failure.__context__ = None
    return failure
