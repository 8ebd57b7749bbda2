"""A generation of a diffusers pipeline: the owner of its suspended call."""

from math import ceil
from typing import Any

from engine.encoded_prompts import EncodedPrompts
from engine.exchange import is_denoiser
from engine.generation import Generation
from engine.pipeline_call import PipelineCall
from engine.pipeline_model import PipelineModel
from engine.policy import BatchKey
from engine.request import GenerationRequest
from engine.step_cache import StepCache


class PipelineGeneration(Generation):
    """Steps as its call does; until the runner has begun that, its rows and its steps are a guess."""

    def __init__(self, request: GenerationRequest, key: BatchKey, model: PipelineModel, **state: Any) -> None:
        super().__init__(request, **state)
        model.check(request)
        self._key = key
        self._signature = 0
        self._model = model
        self._call: PipelineCall | None = None
        self._num_rows = 2 if model.needs_guidance_row(request.guidance_scale) else 1
        self._num_steps = request.num_inference_steps
        self._step_index = 0
        self.pass_in_step = 0  # how many passes of its step have been made: guidance can take two
        self.step_cache = StepCache(request.step_cache, self._num_steps)

    @property
    def call(self) -> PipelineCall:
        """Its call; raises where none has begun, or it has been let go of."""
        if self._call is None:
            raise RuntimeError("the call of this generation has not begun, or has been dropped")
        return self._call

    def begin_call(self, prompts: EncodedPrompts) -> None:
        """Begin its call anew, and let go of one that was begun before."""
        self.drop_tensors()
        self._step_index, self.pass_in_step = 0, -1
        self._call = self._model.begin(self.request, prompts)

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
            self._signature = self._model.signature_number(self.call.parked)

    @property
    def is_solo(self) -> bool:
        """`Generation`'s: a model whose images depend on their company draws one at a time."""
        return super().is_solo or self._model.runs_alone

    @property
    def key(self) -> BatchKey:
        """`Generation`'s: the same at every step."""
        return self._key

    @property
    def signature(self) -> int:
        """`Generation`'s: that of the pass that its call waits for; 0 where none has begun."""
        return self._signature

    @property
    def step_index(self) -> int:
        """`Generation`'s."""
        return self._step_index

    @property
    def num_steps(self) -> int:
        """`Generation`'s."""
        return self._num_steps

    @property
    def num_steps_left(self) -> int:
        """`Generation`'s, in forward passes: a step can have several."""
        left = super().num_steps_left
        return ceil(left * self._num_passes / self._step_index) if self._step_index else left

    @property
    def num_full_steps_left(self) -> int:
        """`Generation`'s, in forward passes."""
        if not self.step_cache.is_used:
            return self.num_steps_left
        return self.step_cache.num_full_from(self._step_index)

    @property
    def is_full_step(self) -> bool:
        """`Generation`'s."""
        return self.step_cache.is_full(self._step_index)

    @property
    def step_cache_bytes(self) -> int:
        """`Generation`'s."""
        return self.step_cache.num_bytes

    @property
    def num_rows(self) -> int:
        """`Generation`'s."""
        return self._num_rows

    @property
    def is_denoised(self) -> bool:
        """`Generation`'s: its call has ended, or waits for a module that is no denoiser."""
        if self._call is None:
            return False
        return self._call.parked is None or not is_denoiser(self._call.parked.name)

    def drop_tensors(self) -> None:
        """`Generation`'s: its call, with all that the pipeline's own code holds, and its step cache."""
        self.step_cache.clear()
        if self._call is not None:
            self._call.end()
            self._call = None
