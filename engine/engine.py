"""Continuous batching for diffusion models: one thread forms a new step batch at every denoising step.

`Engine.tick` is one turn of the loop: take in, drop, admit, choose, step, decode. A generation is in exactly
one of the lists `_waiting`, `_running` and `_denoised`, and only the engine thread changes them. The policy
chooses which generations run, and the runner handles their tensors. The engine does no I/O of its own and
knows no jobs, database rows or queues.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from catalogue.determinism import DeterminismLevel
from engine.device_work import DeviceWork, translate
from engine.errors import (
    DeviceLost,
    EngineError,
    EngineStopped,
    OutOfMemory,
    places_of,
)
from engine.generation import Generation, Handle, Progress
from engine.loaded import Models
from engine.pipelines.pipeline_model import PipelineModel
from engine.pipelines.steady_stack import on_steady_stack
from engine.policy.bulk_limits import BULK_SLOWDOWN
from engine.policy.policy import BULK_PATIENCE_SECONDS, BatchKey, Policy
from engine.policy.side_work import SideWork
from engine.request import GeneratedImage, GenerationRequest
from engine.runner import Runner

logger = logging.getLogger(__name__)

OnDevice = Callable[[Sequence[str]], None]
"""Called on the engine thread with the `job_id` of every generation that the device is about to work on, and
with an empty sequence when that work ends, except after `DeviceLost`. It must be quick and must not raise."""

OnStep = Callable[[str, int, float, str | None], None]
"""Called on the engine thread after each step batch with its model, rows, seconds, and the reason why it was
not fuller (None if it was full). It must be quick and must not raise."""


class Engine:
    """Runs requests on loaded models with continuous batching. Call `start`, or call `tick` yourself.

    `on_device` is called with the jobs that the device works on, so that they can be recorded outside this
    process in case it dies.
    """

    def __init__(
        self,
        models: Mapping[str, PipelineModel],
        row_limits: Mapping[str, Mapping[int, int]],
        *,
        determinism: DeterminismLevel = "within 1/255",
        clock: Callable[[], float] = time.monotonic,
        step_seconds: Callable[[BatchKey, int], float | None] | None = None,
        bulk_slowdown: float = BULK_SLOWDOWN,
        bulk_patience_seconds: float = BULK_PATIENCE_SECONDS,
        on_device: OnDevice = lambda _: None,
        on_step: OnStep = lambda *_: None,
    ) -> None:
        self.determinism: DeterminismLevel = determinism
        self.fatal = threading.Event()  # set when the process must exit; `fatal_error` says why
        self.fatal_error: EngineError | None = None
        self.ticked_at = (
            clock()
        )  # when the loop last made progress; if that is old and the engine is not idle, it hangs
        self.num_ticks = 0  # step batches started
        self._clock = clock
        self._note_on_device = on_device
        self._note_step = on_step
        self._models = Models(models, row_limits, determinism=determinism)
        self._policy = Policy(
            self._models.max_rows,
            bulk_patience_seconds,
            step_seconds=step_seconds,
            bucket_rows=self._models.bucket_rows,
            bulk_slowdown=bulk_slowdown,
        )
        self._side_work = SideWork(clock, bulk_slowdown)
        self._runner = Runner(models, clock, after_pass=self._note_time)
        self.seen_costs = self._runner.seen_costs
        # A tick may do much work. Each piece that ends shows that the engine does not hang.
        self._attempt = DeviceWork(free=lambda: self._runner.free(self._running), after_each=self._note_time)
        self._inbox: deque[Generation] = deque()
        self._waiting: list[Generation] = []
        self._running: list[Generation] = []
        self._denoised: list[Generation] = []
        self._changed = threading.Condition()
        self._num_generations = 0
        self._is_accepting = True
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # Called from any thread.

    def submit(
        self,
        request: GenerationRequest,
        *,
        on_progress: Progress | None = None,
        before_first_step: Callable[[], object] | None = None,
    ) -> Handle:
        """Submit a request and return a handle to its image.

        Raises `RequestInvalid`, `StrictUnavailable`, `EngineStopped`, or `LoraUnusable`, since adapter files
        are read here, on the caller's thread. An unexpected exception of these checks is translated and
        raised too. All later errors are set on the future. `before_first_step` runs once on the engine
        thread; if it fails, the generation does not start.
        """
        try:
            generation = self._models.generation(
                request,
                submitted_at=self._clock(),
                num_ticks=self.num_ticks,
                on_progress=on_progress,
                before_first_step=before_first_step,
            )
            generation.hold_adapters(may_wait=True)
        except EngineError:
            raise
        except Exception as error:  # the checks depend on the request alone, so it would fail again
            raise translate(error) from error
        generation.future.set_running_or_notify_cancel()  # from now on only `Handle.cancel` cancels
        with self._changed:
            if not self._is_accepting:
                generation.release_adapters()
                raise EngineStopped
            if self.is_idle:
                self.ticked_at = self._clock()  # it was old because the engine was idle, not because it hung
            self._num_generations += 1
            self._inbox.append(generation)
            self._changed.notify_all()
        return Handle(generation, self._wake)

    @property
    def num_generations(self) -> int:
        """The number of submitted generations that have not ended."""
        return self._num_generations

    @property
    def is_idle(self) -> bool:
        """Whether there is no work; `ticked_at` says nothing while this is true."""
        return self._num_generations == 0

    @property
    def step_cache_bytes(self) -> int:
        """The size of all step caches of the running generations."""
        return sum(generation.step_cache_bytes for generation in self._running)

    def device_memory_bytes(self) -> int | None:
        """The GPU memory that this process has reserved; None on a CPU."""
        device = next(iter(self._models.by_name.values())).device
        return torch.cuda.memory_reserved(device) if device.type == "cuda" else None

    def peak_device_memory_bytes(self) -> int | None:
        """The most GPU memory that this process has reserved; None on a CPU."""
        device = next(iter(self._models.by_name.values())).device
        return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None

    def generations_by_stage(self) -> dict[str, int]:
        """How many generations wait for a place in a step batch, are denoised, or wait for their decoding."""
        return {
            "joining": len(self._inbox) + len(self._waiting),
            "denoising": len(self._running),
            "decoding": len(self._denoised),
        }

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    def drain(self, seconds: float) -> bool:
        """Refuse new requests, end those that have not begun, and wait for the rest.

        Returns whether all of them ended within `seconds`.
        """
        with self._changed:
            self._is_accepting = False
            return self._changed.wait_for(lambda: self.is_idle, seconds)

    def stop(self) -> None:
        """End the thread after its current tick; unfinished requests get the retryable `EngineStopped`."""
        with self._changed:
            self._is_accepting = False
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread.ident is None:
            self._fail_all(EngineStopped())
        else:
            self._thread.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # Called on the engine thread.

    @on_steady_stack
    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self.tick()
        except Exception as error:  # whatever the error, no future may be left waiting for a dead thread
            # Without the message, which may quote a prompt.
            logger.error("the engine thread crashed\n%s", places_of(error))
            failure = translate(error)
            # An unexpected error is not tied to one request. Like a lost device, it ends the process.
            self.fatal_error = (
                failure if isinstance(failure, DeviceLost) else DeviceLost(type(error).__name__)
            )
        self._fail_all(self.fatal_error or EngineStopped())
        if self.fatal_error is not None:
            self.fatal.set()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._num_generations or self._is_stopping)
            return not self._is_stopping

    @on_steady_stack
    @torch.inference_mode()
    def tick(self) -> None:
        """One turn of the loop: at most one step batch and a few decoded images. Each turn chooses afresh."""
        self.ticked_at = self._clock()
        self._take_in()
        self._drop_ended()
        self._admit()
        self._step(self._policy.choose(self._running, self._clock()))
        self._decode()
        self.ticked_at = self._clock()

    def _has_interactive_arrivals(self) -> bool:
        # A copy, which is made at once: other threads append.
        return any(generation.lane == "interactive" for generation in self._inbox.copy())

    def _take_in(self) -> None:
        while self._inbox:
            self._waiting.append(self._inbox.popleft())

    def _drop_ended(self) -> None:
        now = self._clock()
        # A job is retried as a whole: if one of its images has begun, the others stay in this engine too.
        begun = {one.request.job_id for one in (*self._running, *self._denoised) if one.has_begun} - {""}
        for members in (self._waiting, self._running, self._denoised):
            for generation in list(members):
                if (reason := generation.reason_to_end(now)) is not None:
                    self._end(generation, members, reason)
                elif not (self._is_accepting or generation.has_begun or generation.request.job_id in begun):
                    self._end(generation, members, EngineStopped())  # another worker can start it now

    def _admit(self) -> None:
        # Calls of these models may change shared modules, so each begins only when the one before has ended.
        busy = {one.key.model for one in (*self._running, *self._denoised) if one.runs_alone}
        waiting = [one for one in self._with_adapters() if one.key.model not in busy]
        admitted = self._policy.admit(waiting, self._running, self._clock())
        for generation in self._side_work.to_encode(admitted, self._running, self._has_interactive_arrivals):
            if generation.key.model in busy:
                continue
            busy |= {generation.key.model} if generation.runs_alone else set()
            # An isolated generation is encoded in `_may_begin`: by then a crash can be attributed to it.
            failure = None if generation.is_isolated else self._encode(generation)
            if failure is not None:
                self._end(generation, self._waiting, failure)
                continue
            self._waiting.remove(generation)
            self._running.append(generation)

    def _with_adapters(self) -> list[Generation]:
        """The waiting generations whose adapters are loaded; tries again to load those that had no room."""
        holding = []
        for generation in list(self._waiting):
            outcome: bool | EngineError = generation.has_adapters
            if not outcome:
                outcome = self._attempt(generation.hold_adapters, may_wait=False)
            if isinstance(outcome, EngineError):
                self._end(generation, self._waiting, outcome)
            elif outcome:
                holding.append(generation)
        return holding

    def _step(self, chosen: Sequence[Generation]) -> None:
        if self._denoised and any(generation.is_isolated for generation in chosen):
            return  # an isolated generation runs alone, so the images of others are decoded first
        chosen = [generation for generation in chosen if self._may_begin(generation)]
        if not chosen:
            return
        is_full = all(generation.is_full_step for generation in chosen)
        started_at = self._clock()
        self.num_ticks += 1
        num_rows = [
            generation.num_rows for generation in chosen
        ]  # counted before the step, which may end guidance for some members
        for generation in chosen:
            generation.begin_step(started_at, self.num_ticks)
        is_whole = self._step_or_split(chosen)
        ended_at = self._clock()
        for generation, rows in zip(chosen, num_rows, strict=True):
            share = rows / sum(num_rows)
            generation.charge((ended_at - started_at) * share, self._policy.reason_not_fuller)
        self._note_step(
            chosen[0].key.model, sum(num_rows), ended_at - started_at, self._policy.reason_not_fuller
        )
        self._policy.stepped(chosen[0].key, ended_at - started_at, is_full=is_full, is_whole=is_whole)
        is_interactive = any(generation.lane == "interactive" for generation in chosen)
        self._side_work.stepped(ended_at - started_at, is_interactive=is_interactive)
        for generation in chosen:
            if generation.is_denoised and not generation.future.done():
                generation.end_steps(ended_at)
                self._running.remove(generation)
                self._denoised.append(generation)

    def _may_begin(self, generation: Generation) -> bool:
        if generation.has_begun:
            return True
        outcome: object = None
        if generation.before_first_step is not None:
            outcome = self._attempt(generation.before_first_step)
        if generation.is_isolated and not isinstance(outcome, EngineError):
            outcome = self._encode(generation)
        if isinstance(outcome, EngineError):
            self._end(generation, self._running, outcome)
            return False
        return True

    def _encode(self, generation: Generation) -> EngineError | None:
        with self._on_device([generation]):
            return self._attempt.twice(self._runner.encode, generation)

    def _step_or_split(self, members: Sequence[Generation]) -> bool:
        """Step `members` together; on an error, step them in parts, so that only the faulty one fails.

        Returns whether they were stepped together.
        """
        attempt = (
            self._attempt.twice if len(members) == 1 else self._attempt
        )  # a single member cannot be split, but memory can be freed
        with self._on_device(members):
            outcome = attempt(self._runner.step, members)
        if not isinstance(outcome, EngineError):
            if any(isinstance(failure, OutOfMemory) for failure in outcome.values()):
                # Memory ran out in a pipeline's own code, after the pass, which cannot be repeated in parts.
                self._policy.lower(members[0].key, sum(member.num_rows for member in members))
                self._runner.free(self._running)
            for generation in members:
                if generation in outcome:
                    self._end(generation, self._running, outcome[generation])
                else:
                    generation.report()
            return True
        if len(members) == 1:
            self._end(members[0], self._running, outcome)
        elif isinstance(outcome, OutOfMemory):
            self._policy.lower(members[0].key, sum(member.num_rows for member in members))
            half = len(members) // 2
            self._step_or_split(members[:half])
            self._step_or_split(members[half:])
        else:
            for generation in members:
                self._step_or_split([generation])
        return False

    def _decode(self) -> None:
        ordered = self._policy.order(self._denoised, self._clock())
        for generation in self._side_work.to_decode(ordered, self._running, self._has_interactive_arrivals):
            started_at = self._clock()
            if (reason := generation.reason_to_end(started_at)) is not None:
                self._end(generation, self._denoised, reason)
                continue
            with self._on_device([generation]):
                pixels = self._attempt.twice(self._runner.decode, generation)
            generation.charge(self._clock() - started_at)
            if not isinstance(pixels, EngineError):
                self._end(generation, self._denoised, generation.image(pixels, self._clock()))
            else:
                self._end(generation, self._denoised, pixels)

    @contextmanager
    def _on_device(self, generations: Sequence[Generation]) -> Iterator[None]:
        self._note_on_device([generation.request.job_id for generation in generations])
        yield
        # Not after `DeviceLost`, which is raised at the `yield`: the record then shows the last work.
        self._note_on_device(())

    def _note_time(self) -> None:
        self.ticked_at = self._clock()

    def _end(
        self, generation: Generation, members: list[Generation], outcome: GeneratedImage | EngineError
    ) -> None:
        members.remove(generation)
        self._resolve(generation, outcome)

    def _resolve(self, generation: Generation, outcome: GeneratedImage | EngineError) -> None:
        generation.drop_tensors()
        generation.release_adapters()
        if isinstance(outcome, EngineError):
            generation.future.set_exception(outcome)
        else:
            generation.future.set_result(outcome)
        with self._changed:
            self._num_generations -= 1
            self._changed.notify_all()

    def _fail_all(self, error: EngineError) -> None:
        with self._changed:
            self._is_accepting = False
        self._take_in()
        for members in (self._waiting, self._running, self._denoised):
            while members:
                self._resolve(
                    members.pop(), type(error)(str(error))
                )  # one error each: raising it changes its traceback
