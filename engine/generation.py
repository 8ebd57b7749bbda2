"""One request in flight: how long it waited, what it cost, and who is told of it.

It owns the suspended call of its pipeline, and steps as that does. Runner and policy keep nothing about a
generation; the engine's lists say where it is. Only the engine thread writes here, but for the cancel flag.
"""

import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from math import ceil

import numpy as np

from engine.adapters.adapter import Applied, order_of
from engine.errors import Canceled, DeadlineExceeded, EngineError
from engine.partial_forwards.step_cache import StepCache
from engine.pipelines.components import is_denoiser
from engine.pipelines.encoded_prompts import EncodedPrompts
from engine.pipelines.pipeline_call import PipelineCall
from engine.pipelines.pipeline_model import PipelineModel
from engine.policy.policy import BatchKey, Reason
from engine.request import GeneratedImage, GenerationRequest, RequestWarning, Timings

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called as `on_progress(steps done, steps)` on the engine thread after each step: it must be quick."""


class Generation:
    """A `GenerationRequest` between `submit` and its image.

    Until the runner has begun its call, its rows and its steps are a guess.
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
        self._adapters: Applied | None = None if request.loras else ()
        self._num_rows = 2 if model.needs_guidance_row(request.guidance_scale) else 1
        self._num_steps = model.num_steps(request)
        self._step_index = 0
        self.pass_in_step = 0  # how many passes of its step have been made: guidance can take two
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
        self._num_passes = 0  # step batches that it ran in
        self._num_mates = 0  # members of all of them, itself included
        self.encoding_seconds = 0.0
        self._device_seconds = 0.0
        self._not_fuller: Counter[Reason] = Counter()

    @property
    def call(self) -> PipelineCall:
        """Its call; raises where none has begun, or it has been let go of."""
        if self._call is None:
            raise RuntimeError("the call of this generation has not begun, or has been dropped")
        return self._call

    @property
    def has_adapters(self) -> bool:
        """Whether it holds its adapters, or asks for none."""
        return self._adapters is not None

    @property
    def adapters(self) -> Applied:
        """Its adapters; raises where it does not hold them."""
        if self._adapters is None:
            raise RuntimeError("this generation waits for its adapters, or has let go of them")
        return self._adapters

    @property
    def adapters_order(self) -> tuple[tuple[int, float], ...]:
        """Equal for those whose rows have the same adapters."""
        return order_of(self.adapters)

    def hold_adapters(self, *, may_wait: bool) -> bool:
        """Whether it holds its adapters from now on, which stay on the device until it lets go of them.

        Files may be read for that, on any thread; unless it `may_wait`, not while another thread reads one.
        Raises `LoraUnusable`.
        """
        if self._adapters is None and self._model.adapters is not None:
            self._adapters = self._model.adapters.hold(self, self.request.loras, may_wait=may_wait)
        return self._adapters is not None

    def let_go_of_adapters(self) -> None:
        """Let go of those it holds, and of its place in the queue for those it does not hold."""
        if self._model.adapters is not None and self.request.loras:
            if self._adapters is None:
                self._model.adapters.leave_queue(self)
            else:
                self._model.adapters.let_go(self, [lora.name for lora in self.request.loras])
            self._adapters = None

    def begin_call(self, prompts: EncodedPrompts) -> None:
        """Begin its call anew, and let go of one that was begun before."""
        self.drop_tensors()
        self._step_index, self.pass_in_step = 0, -1
        self._call = self._model.begin(self.request, prompts, adapters=self.adapters)

    def note_call(self) -> None:
        """Read off its call how far it is, how many steps it has and how many rows the next one has."""
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
        """Let go of all that is large, at the end: a caller may hold its handle for long after that.

        That is its call, with all that the pipeline's own code holds, and its step cache.
        """
        self.step_cache.clear()
        if self._call is not None:
            self._call.end()
            self._call = None

    @property
    def signature(self) -> int:
        """Of equal keys, those of equal signature share the pass that their calls wait for; 0 before that."""
        return self._signature

    @property
    def step_index(self) -> int:
        """Steps done."""
        return self._step_index

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        return self._num_steps

    @property
    def num_full_steps_left(self) -> int:
        """Forward passes still to be made that run the whole model."""
        if not self.step_cache.is_used:
            return self.num_steps_left
        return self.step_cache.num_full_from(self._step_index)

    @property
    def is_full_step(self) -> bool:
        """Whether its next step runs the whole model."""
        return self.step_cache.is_full(self._step_index)

    @property
    def step_cache_bytes(self) -> int:
        """What its step cache holds."""
        return self.step_cache.num_bytes

    @property
    def num_rows(self) -> int:
        """Rows of its next forward pass."""
        return self._num_rows

    @property
    def is_denoised(self) -> bool:
        """Whether its call has ended, or waits for a module that is no denoiser."""
        if self._call is None:
            return False
        return self._call.parked is None or not is_denoiser(self._call.parked.name)

    @property
    def lane(self) -> str:
        """`interactive` or `bulk`."""
        return self.request.lane

    @property
    def account(self) -> str:
        """Whose it is."""
        return self.request.account

    @property
    def is_isolated(self) -> bool:
        """Whether nothing may run beside it."""
        return self.request.isolated

    @property
    def runs_alone(self) -> bool:
        """Whether no other generation of its model may have begun beside it."""
        return self._model.runs_alone

    @property
    def has_begun(self) -> bool:
        """Whether it has been given its first step."""
        return self._begun_at is not None

    @property
    def num_steps_left(self) -> int:
        """Forward passes still to be made: a step can have several."""
        left = self._num_steps - self._step_index
        return ceil(left * self._num_passes / self._step_index) if self._step_index else left

    def given_up(self, now: float) -> EngineError | None:
        """Why nobody waits for it any more, if so."""
        if self.is_cancel_requested:
            return Canceled()
        if self.deadline_at is not None and now >= self.deadline_at:
            return DeadlineExceeded()
        return None

    def begin_step(self, now: float, num_ticks: int) -> None:
        """Take note that step batch number `num_ticks` starts and that this generation is in it."""
        if self._begun_at is None:
            self._begun_at = now
            self._num_ticks_waited = num_ticks - self._num_ticks_at_submit

    def commit_step(self, num_members: int) -> None:
        """Take note of a forward pass that it ran in with `num_members` generations, itself included."""
        self._num_passes += 1
        self._num_mates += num_members

    def report(self) -> None:
        """Tell its progress; whoever fails to listen is not told again."""
        if self.on_progress is None:
            return
        try:
            self.on_progress(self.step_index, self.num_steps)
        except Exception:
            logger.warning("on_progress of %r failed: dropped", self.request.job_id, exc_info=True)
            self.on_progress = None

    def pay(self, device_seconds: float, not_fuller: Reason | None = None) -> None:
        """Take note of its share of a step batch, and why that was not fuller; or of work of its own."""
        self._device_seconds += device_seconds
        if not_fuller is not None:
            self._not_fuller[not_fuller] += 1

    def end_steps(self, now: float) -> None:
        """Take note that its last step is done."""
        self._denoised_at = now

    def timings(self, now: float) -> Timings:
        """Where the time went, for an image that became ready `now`."""
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
        """The mean number of generations in the step batches that it ran in."""
        return self._num_mates / max(1, self._num_passes)

    def image(self, pixels: np.ndarray, now: float) -> GeneratedImage:
        """The outcome: its decoded pixels, uint8 `(H, W, 3)`, that became ready `now`."""
        return GeneratedImage(
            pixels=pixels,
            warnings=self.warnings,
            timings=self.timings(now),
            mean_step_batch=self.mean_step_batch,
            not_fuller={str(reason): count for reason, count in self._not_fuller.items()},
            num_steps=self.num_steps,
        )
