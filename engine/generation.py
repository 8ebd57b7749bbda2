"""One image in flight: a request with its pipeline call, its progress, its timings and its future.

A `Generation` owns the suspended call of its pipeline and counts steps as that call does. Runner and policy
keep no state of a generation, and the engine's lists say which phase it is in. Only the engine thread writes
to it, except for the cancel flag.
"""

import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from math import ceil

import numpy as np

from catalogue.warnings import RequestWarning
from engine.adapters.adapter import Applied, order_of
from engine.adapters.adapters import asked_by
from engine.errors import Canceled, DeadlineExceeded, EngineError
from engine.partial_forwards.step_cache import StepCache
from engine.pipelines.components import is_denoiser
from engine.pipelines.encoded_prompts import EncodedPrompts
from engine.pipelines.pipeline_call import PipelineCall
from engine.pipelines.pipeline_model import PipelineModel
from engine.policy.policy import BatchKey, Reason
from engine.request import GeneratedImage, GenerationRequest, Timings

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called as `on_progress(num_steps_done, num_steps)` on the engine thread after each step; must be quick."""


class Generation:
    """A `GenerationRequest` between `submit` and its image.

    `num_rows` and `num_steps` are expected values until the runner has begun the pipeline call.
    """

    def __init__(
        self,
        request: GenerationRequest,
        key: BatchKey,
        model: PipelineModel,
        *,
        submitted_at: float,
        num_ticks: int,
        on_progress: Progress | None = None,
        before_first_step: Callable[[], object] | None = None,
    ) -> None:
        model.check(request)
        self.request = request
        self.key = key
        self._model = model
        self._signature = 0
        self._call: PipelineCall | None = None
        self._adapters: Applied | None = None if asked_by(request) else ()
        self._num_rows = 2 if model.needs_guidance_row(request.guidance_scale) else 1
        self._num_steps = model.num_steps(request)
        self._step_index = 0
        self.pass_in_step = 0  # forward passes made in this step: with guidance some models make two
        self.step_cache = StepCache(request.step_cache, self._num_steps)
        self.future: Future[GeneratedImage] = Future()
        self.on_progress = on_progress
        self.before_first_step = before_first_step
        self.is_cancel_requested = False
        self.warnings: tuple[RequestWarning, ...] = ()

        self.submitted_at = submitted_at
        left = request.seconds_left
        self.deadline_at = None if left is None else submitted_at + left
        self._num_ticks_at_submit = num_ticks
        self._num_ticks_waited = 0
        self._begun_at: float | None = None
        self._denoised_at = 0.0
        self._num_passes = 0  # forward passes that it was part of
        self._num_members = 0  # generations in those passes, itself included
        self.encoding_seconds = 0.0
        self._device_seconds = 0.0
        self._not_fuller: Counter[Reason] = Counter()

    @property
    def call(self) -> PipelineCall:
        """The pipeline call; raises `RuntimeError` before it begins and after it has been dropped."""
        if self._call is None:
            raise RuntimeError("the call of this generation has not begun, or has been dropped")
        return self._call

    @property
    def has_adapters(self) -> bool:
        """Whether its adapters are loaded, or it asks for none."""
        return self._adapters is not None

    @property
    def adapters(self) -> Applied:
        """The loaded adapters; raises `RuntimeError` if it does not hold them."""
        if self._adapters is None:
            raise RuntimeError("this generation still waits for its adapters, or has released them")
        return self._adapters

    @property
    def adapters_order(self) -> tuple[tuple[int, float], ...]:
        """A sort key that is equal for generations with the same adapters at the same scales."""
        return order_of(self.adapters)

    def hold_adapters(self, *, may_wait: bool) -> bool:
        """Load the adapters and keep them on the device; returns whether it holds them now.

        Reads files, on any thread. Unless `may_wait`, it returns False while another thread reads one. Raises
        `LoraUnusable`.
        """
        if self._adapters is None and self._model.adapters is not None:
            self._adapters = self._model.adapters.hold(self, asked_by(self.request), may_wait=may_wait)
        return self._adapters is not None

    def release_adapters(self) -> None:
        """Release the adapters, or leave the queue for them."""
        if self._model.adapters is not None and asked_by(self.request):
            if self._adapters is None:
                self._model.adapters.leave_queue(self)
            else:
                self._model.adapters.release(self, [one.name for one in asked_by(self.request)])
            self._adapters = None

    def begin_call(self, prompts: EncodedPrompts) -> None:
        """Begin the pipeline call; an earlier call is ended first."""
        self.drop_tensors()
        self._step_index, self.pass_in_step = 0, -1
        self._call = self._model.begin(self.request, prompts, adapters=self.adapters)

    def read_call(self) -> None:
        """Read steps, rows and signature from the call, which is parked at its next forward pass."""
        is_next_step = self.call.num_steps_done > self._step_index
        self.pass_in_step = 0 if is_next_step else self.pass_in_step + 1
        self._step_index = self.call.num_steps_done
        num_steps = self.call.num_steps or self._num_steps
        if num_steps != self._num_steps:
            self._num_steps, self.step_cache = num_steps, StepCache(self.request.step_cache, num_steps)
        if self.step_cache.is_used and is_next_step:
            self.step_cache.drop_unneeded(self._step_index, is_guided=True)
        if self.call.parked is not None:
            self._num_rows = self.call.parked.num_rows
            apart = () if self._model.exchange.mixes_adapters else self.adapters_order
            self._signature = self._model.signature_number(self.call.parked, apart)

    def drop_tensors(self) -> None:
        """Free the call, with all that the pipeline's code holds, and the step cache.

        A caller may keep the handle long afterwards.
        """
        self.step_cache.clear()
        if self._call is not None:
            self._call.end()
            self._call = None

    @property
    def signature(self) -> int:
        """Generations with equal key and signature share their next forward pass; 0 before the first one."""
        return self._signature

    @property
    def step_index(self) -> int:
        """The number of steps done."""
        return self._step_index

    @property
    def num_steps(self) -> int:
        """The number of all steps."""
        return self._num_steps

    @property
    def num_full_steps_left(self) -> int:
        """Remaining forward passes that run the whole model."""
        if not self.step_cache.is_used:
            return self.num_steps_left
        return self.step_cache.num_full_from(self._step_index)

    @property
    def is_full_step(self) -> bool:
        """Whether the next step is a full step, which runs the whole model."""
        return self.step_cache.is_full(self._step_index)

    @property
    def step_cache_bytes(self) -> int:
        """The size of the step cache."""
        return self.step_cache.num_bytes

    @property
    def num_rows(self) -> int:
        """The rows of its next forward pass."""
        return self._num_rows

    @property
    def is_denoised(self) -> bool:
        """Whether the call has ended, or waits for a module that is not a denoiser."""
        if self._call is None:
            return False
        return self._call.parked is None or not is_denoiser(self._call.parked.name)

    @property
    def lane(self) -> str:
        """The request's lane, `interactive` or `bulk`."""
        return self.request.lane

    @property
    def account(self) -> str:
        """The account that the request belongs to."""
        return self.request.account

    @property
    def is_isolated(self) -> bool:
        """Whether no other generation may run between its first and its last step."""
        return self.request.isolated

    @property
    def runs_alone(self) -> bool:
        """Whether its model draws one image at a time."""
        return self._model.runs_alone

    @property
    def has_begun(self) -> bool:
        """Whether its first step has started."""
        return self._begun_at is not None

    @property
    def num_steps_left(self) -> int:
        """Remaining forward passes; a step can have several."""
        left = self._num_steps - self._step_index
        return ceil(left * self._num_passes / self._step_index) if self._step_index else left

    def reason_to_end(self, now: float) -> EngineError | None:
        """The error to end it with: `Canceled`, `DeadlineExceeded` or None."""
        if self.is_cancel_requested:
            return Canceled()
        if self.deadline_at is not None and now >= self.deadline_at:
            return DeadlineExceeded()
        return None

    def begin_step(self, now: float, num_ticks: int) -> None:
        """Record that it is part of step batch number `num_ticks`, which starts now."""
        if self._begun_at is None:
            self._begun_at = now
            self._num_ticks_waited = num_ticks - self._num_ticks_at_submit

    def commit_step(self, num_members: int) -> None:
        """Record a forward pass of `num_members` generations, itself included."""
        self._num_passes += 1
        self._num_members += num_members

    def report(self) -> None:
        """Call `on_progress`; a callback that raises is not called again."""
        if self.on_progress is None:
            return
        try:
            self.on_progress(self.step_index, self.num_steps)
        except Exception:
            logger.warning(
                "on_progress of job %r failed and will not be called again",
                self.request.job_id,
                exc_info=True,
            )
            self.on_progress = None

    def charge(self, device_seconds: float, not_fuller: Reason | None = None) -> None:
        """Add its share of a step batch and why the batch was not fuller, or add work done for it alone."""
        self._device_seconds += device_seconds
        if not_fuller is not None:
            self._not_fuller[not_fuller] += 1

    def end_steps(self, now: float) -> None:
        """Record that its last step is done."""
        self._denoised_at = now

    def timings(self, now: float) -> Timings:
        """The timings of an image that became ready `now`."""
        begun_at = self.submitted_at if self._begun_at is None else self._begun_at
        return Timings(
            waiting_seconds=begun_at - self.submitted_at,
            encoding_seconds=self.encoding_seconds,
            denoising_seconds=self._denoised_at - begun_at,
            decoding_seconds=now - self._denoised_at,
            num_ticks_waited=self._num_ticks_waited,
            device_seconds=self._device_seconds + self.encoding_seconds,
        )

    @property
    def mean_step_batch(self) -> float:
        """The mean number of generations in its step batches."""
        return self._num_members / max(1, self._num_passes)

    def image(self, pixels: np.ndarray, now: float) -> GeneratedImage:
        """The result for decoded pixels, uint8 `(H, W, 3)`, that became ready `now`."""
        return GeneratedImage(
            pixels=pixels,
            warnings=self.warnings,
            timings=self.timings(now),
            mean_step_batch=self.mean_step_batch,
            not_fuller={str(reason): count for reason, count in self._not_fuller.items()},
            num_steps=self.num_steps,
        )


class Handle:
    """Returned by `Engine.submit`: the future, the progress and `cancel`. Thread-safe."""

    def __init__(self, generation: Generation, wake: Callable[[], None]) -> None:
        self._generation = generation
        self._wake = wake

    @property
    def future(self) -> Future[GeneratedImage]:
        """The future of the image; it raises an `EngineError` if the generation fails."""
        return self._generation.future

    @property
    def progress(self) -> float:
        """The share of steps done, 0..1."""
        return self._generation.step_index / self._generation.num_steps

    def cancel(self) -> None:
        """End it with `Canceled` at the next step boundary; no effect if the image is already done."""
        self._generation.is_cancel_requested = True
        self._wake()
