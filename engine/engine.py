"""The engine: one thread that re-forms the step batch at every denoising step.

`Engine.tick` is the whole system: take in, drop, admit, choose, step, decode. A generation is in exactly
one of the lists `_waiting`, `_running` and `_denoised`, and only the engine thread touches them. It performs
no I/O of its own and knows no jobs, rows or queues; who runs is the policy's, tensors the runner's.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from engine.attempt import Attempt, translate
from engine.determinism import DeterminismLevel
from engine.errors import (
    DeviceLost,
    EngineError,
    EngineStopped,
    OutOfMemory,
)
from engine.generation import Generation, Progress
from engine.handle import Handle
from engine.loaded import Models
from engine.pipelines.pipeline_model import PipelineModel
from engine.pipelines.steady_stack import on_steady_stack
from engine.policy.policy import BatchKey, Policy
from engine.policy.side_work import SideWork
from engine.request import GeneratedImage, GenerationRequest
from engine.runner import Runner
from engine.traceback_places import places_of

logger = logging.getLogger(__name__)

OnDevice = Callable[[Sequence[str]], None]
"""Called on the engine thread with the `job_id` of every generation that the device works on from now on:
none at the end of a piece of work, but not after `DeviceLost`. It must be quick, and not raise."""

OnStep = Callable[[str, int, float, str | None], None]
"""Called on the engine thread after each step batch: its model, rows and seconds, and why it was not fuller
unless it was full. It must be quick, and not raise."""


class Engine:
    """Runs requests on loaded models, in step batches. `start` it, or call `tick` yourself.

    `on_device` learns what the device works on, so that somebody else can know it should the process die.
    """

    def __init__(
        self,
        models: Mapping[str, PipelineModel],
        row_limits: Mapping[str, Mapping[int, int]],
        *,
        determinism: DeterminismLevel = "within 1/255",
        clock: Callable[[], float] = time.monotonic,
        step_seconds: Callable[[BatchKey, int], float | None] | None = None,
        on_device: OnDevice = lambda _: None,
        on_step: OnStep = lambda *_: None,
    ) -> None:
        self.determinism: DeterminismLevel = determinism
        self.fatal = threading.Event()  # set when the process must exit; `fatal_error` says why
        self.fatal_error: EngineError | None = None
        self.ticked_at = clock()  # when the loop last turned: old, and not idle, means hung
        self.num_ticks = 0  # step batches begun
        self._clock = clock
        self._note_on_device = on_device
        self._note_step = on_step
        self._models = Models(models, row_limits, determinism=determinism)
        self._policy = Policy(
            self._models.max_rows, step_seconds=step_seconds, bucket_rows=self._models.bucket_rows
        )
        self._side_work = SideWork(clock)
        self._runner = Runner(models, clock, after_pass=self._note_time)
        self.seen_costs = self._runner.seen_costs
        # A tick of many pieces of work that each come to an end is long, and not hung.
        self._attempt = Attempt(free=lambda: self._runner.free(self._running), after_each=self._note_time)
        self._inbox: deque[Generation] = deque()
        self._waiting: list[Generation] = []
        self._running: list[Generation] = []
        self._denoised: list[Generation] = []
        self._changed = threading.Condition()
        self._num_generations = 0
        self._is_accepting = True
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # Callers' threads.

    def submit(
        self,
        request: GenerationRequest,
        *,
        on_progress: Progress | None = None,
        before_first_step: Callable[[], object] | None = None,
    ) -> Handle:
        """Hand a request over; raises what is wrong with it, `StrictUnavailable` or `EngineStopped`.

        That is `RequestInvalid`, or `LoraUnusable`: adapters are read here, on the caller's thread.
        All else comes by the future, save what nobody foresaw about a request. `before_first_step` runs once
        on the engine thread; if it fails, the generation does not start.
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
        except Exception as error:  # the request alone decides here, so it would fail again
            raise translate(error) from error
        generation.future.set_running_or_notify_cancel()  # only `Handle.cancel` cancels, at a step boundary
        with self._changed:
            if not self._is_accepting:
                generation.let_go_of_adapters()
                raise EngineStopped
            if self.is_idle:
                self.ticked_at = self._clock()  # it stood still because it was idle, not because it hung
            self._num_generations += 1
            self._inbox.append(generation)
            self._changed.notify_all()
        return Handle(generation, self._wake)

    @property
    def num_generations(self) -> int:
        """Generations between `submit` and their outcome."""
        return self._num_generations

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do, so that an old `ticked_at` means nothing."""
        return self._num_generations == 0

    @property
    def step_cache_bytes(self) -> int:
        """What the step caches of running generations hold."""
        return sum(generation.step_cache_bytes for generation in self._running)

    def device_memory_bytes(self) -> int | None:
        """What this process has reserved of its GPU's memory; `None` on a CPU."""
        device = next(iter(self._models.by_name.values())).device
        return torch.cuda.memory_reserved(device) if device.type == "cuda" else None

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    def drain(self, seconds: float) -> bool:
        """Take no more requests, give up what has not begun, wait for the rest; whether that was in time."""
        with self._changed:
            self._is_accepting = False
            return self._changed.wait_for(lambda: self.is_idle, seconds)

    def stop(self) -> None:
        """End the thread after its current tick; what is unfinished gets `EngineStopped`, to be retried."""
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

    # The engine thread.

    @on_steady_stack
    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self.tick()
        except Exception as error:  # the only broad one: nobody may wait for a dead thread
            # A message may quote a prompt.
            logger.error("the engine thread ended\n%s", places_of(error))
            failure = translate(error)
            # What nobody foresaw is nobody's in particular: it ends like a lost device, as a crash.
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
        """One turn: at most one step batch and a few images, with every decision taken anew."""
        self.ticked_at = self._clock()
        self._take_in()
        self._drop_ended()
        self._admit()
        self._step(self._policy.choose(self._running, self._clock()))
        self._decode()
        self.ticked_at = self._clock()

    def _take_in(self) -> None:
        while self._inbox:
            self._waiting.append(self._inbox.popleft())

    def _drop_ended(self) -> None:
        now = self._clock()
        # Of a job with an image under way the other images are wanted here, or that one was for nothing.
        begun = {one.request.job_id for one in (*self._running, *self._denoised) if one.has_begun} - {""}
        for members in (self._waiting, self._running, self._denoised):
            for generation in list(members):
                if (reason := generation.given_up(now)) is not None:
                    self._end(generation, members, reason)
                elif not (self._is_accepting or generation.has_begun or generation.request.job_id in begun):
                    self._end(generation, members, EngineStopped())  # another worker can begin it now

    def _admit(self) -> None:
        # Calls of such a model may change its shared modules, so one begins when the one before has ended.
        busy = {one.key.model for one in (*self._running, *self._denoised) if one.runs_alone}
        waiting = [one for one in self._with_adapters() if one.key.model not in busy]
        admitted = self._policy.admit(waiting, self._running, self._clock())
        for generation in self._side_work.to_encode(admitted):
            if generation.key.model in busy:
                continue
            busy |= {generation.key.model} if generation.runs_alone else set()
            # A suspect's text is encoded when it begins: by then it is noted whose crash it would be.
            failure = None if generation.is_isolated else self._encode(generation)
            if failure is not None:
                self._end(generation, self._waiting, failure)
                continue
            self._waiting.remove(generation)
            self._running.append(generation)

    def _with_adapters(self) -> list[Generation]:
        """Those that wait and hold their adapters; for others there was no room when they were submitted."""
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
            return  # nothing of others' may crash beside a suspect: first their images are decoded
        chosen = [generation for generation in chosen if self._may_begin(generation)]
        if not chosen:
            return
        is_full = all(generation.is_full_step for generation in chosen)
        started_at = self._clock()
        self.num_ticks += 1
        num_rows = [generation.num_rows for generation in chosen]  # a step may end its guidance
        for generation in chosen:
            generation.begin_step(started_at, self.num_ticks)
        is_whole = self._step_or_split(chosen)
        ended_at = self._clock()
        for generation, rows in zip(chosen, num_rows, strict=True):
            share = rows / sum(num_rows)
            generation.pay((ended_at - started_at) * share, self._policy.reason_not_fuller)
        self._note_step(
            chosen[0].key.model, sum(num_rows), ended_at - started_at, self._policy.reason_not_fuller
        )
        self._policy.stepped(chosen[0].key, ended_at - started_at, is_full=is_full, is_whole=is_whole)
        self._side_work.stepped(ended_at - started_at)
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
        """Step `members`, after an error in parts, so that only who fails alone is charged; was it whole?"""
        attempt = self._attempt.twice if len(members) == 1 else self._attempt  # others may have filled memory
        with self._on_device(members):
            outcome = attempt(self._runner.step, members)
        if not isinstance(outcome, EngineError):
            if any(isinstance(failure, OutOfMemory) for failure in outcome.values()):
                # In the pipelines' own code, behind the pass: it cannot be made again in parts.
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
        ordered = self._policy.order_to_decode(self._denoised, self._clock())
        for generation in self._side_work.to_decode(ordered, len(self._running), lambda: bool(self._inbox)):
            started_at = self._clock()
            if (reason := generation.given_up(started_at)) is not None:
                self._end(generation, self._denoised, reason)
                continue
            with self._on_device([generation]):
                pixels = self._attempt.twice(self._runner.decode, generation)
            generation.pay(self._clock() - started_at)
            if not isinstance(pixels, EngineError):
                self._end(generation, self._denoised, generation.image(pixels, self._clock()))
            else:
                self._end(generation, self._denoised, pixels)

    @contextmanager
    def _on_device(self, generations: Sequence[Generation]) -> Iterator[None]:
        self._note_on_device([generation.request.job_id for generation in generations])
        yield
        # Not where the device was lost: then they are what it worked on last.
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
        generation.let_go_of_adapters()
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
                self._resolve(members.pop(), type(error)(str(error)))  # a future each: raising changes it
