"""One request in flight: how long it waited, what it cost, and who is told of it.

What it holds on the device is its subclasses': a `NativeGeneration` has latents, a `PipelineGeneration` a
suspended call. Runner and policy keep nothing about a generation; the engine's lists say where it is. Only
the engine thread writes here, but for the cancel flag.
"""

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from engine.errors import Canceled, DeadlineExceeded, EngineError
from engine.policy import BatchKey, Reason
from engine.request import GeneratedImage, GenerationRequest, RequestWarning, Timings

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called as `on_progress(steps done, steps)` on the engine thread after each step: it must be quick."""


class Generation(ABC):
    """A `GenerationRequest` between `submit` and its image."""

    def __init__(
        self,
        request: GenerationRequest,
        *,
        submitted_at: float,
        num_ticks: int,
        on_progress: Progress | None = None,
        before_first_step: Callable[[], object] | None = None,
    ) -> None:
        self.request = request
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
    @abstractmethod
    def key(self) -> BatchKey:
        """What it may share its next forward pass with."""

    @property
    def signature(self) -> int:
        """Of equal keys, those of equal signature can share a forward pass."""
        return 0

    @property
    @abstractmethod
    def step_index(self) -> int:
        """Steps done."""

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Steps in all."""

    @property
    @abstractmethod
    def num_full_steps_left(self) -> int:
        """Those of the steps still to run that run the whole model."""

    @property
    @abstractmethod
    def is_full_step(self) -> bool:
        """Whether its next step runs the whole model."""

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """Rows of its next step."""

    @property
    @abstractmethod
    def is_denoised(self) -> bool:
        """Whether its last step is done and it waits to be decoded."""

    @property
    def step_cache_bytes(self) -> int:
        """What its step cache holds."""
        return 0

    @abstractmethod
    def drop_tensors(self) -> None:
        """Let go of all that is large, at the end: a caller may hold its handle for long after that."""

    @property
    def lane(self) -> str:
        """`interactive` or `bulk`."""
        return self.request.lane

    @property
    def account(self) -> str:
        """Whose it is."""
        return self.request.account

    @property
    def is_solo(self) -> bool:
        """Whether nothing may run beside it."""
        return self.request.solo

    @property
    def has_begun(self) -> bool:
        """Whether it has been given its first step."""
        return self._begun_at is not None

    @property
    def num_steps_left(self) -> int:
        """Steps still to run."""
        return self.num_steps - self.step_index

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
