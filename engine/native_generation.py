"""A generation of a family that is written here: the owner of its latents, its noise and its step cache."""

from typing import Any

import torch
from torch import Tensor

from engine.company import Company
from engine.families.family import Encoding
from engine.generation import Generation
from engine.policy import BatchKey
from engine.request import GenerationRequest
from engine.sampling import CoefficientTable
from engine.step_cache import StepCache


class NativeGeneration(Generation):
    """Steps by the coefficient table of its scheduler; the runner writes its encodings and its latents."""

    def __init__(
        self,
        request: GenerationRequest,
        key: BatchKey,
        table: CoefficientTable,
        *,
        is_guided: bool,
        **state: Any,
    ) -> None:
        super().__init__(request, **state)
        self._key = key
        self.table = table
        self._step_index = 0
        self.generator = torch.Generator("cpu").manual_seed(
            request.seed
        )  # CPU: seeds mean the same everywhere
        self._noise: Tensor | None = None

        # Set by the runner when it encodes, and the first two by each company that it joins.
        self.company: Company
        self.place: int
        self.encoding: Encoding
        self.negative_encoding: Encoding  # of a guided generation only

        self.step_cache = StepCache(request.step_cache, table.num_steps)
        self._num_guided_steps = request.guidance_cutoff * table.num_steps if is_guided else 0

    @property
    def key(self) -> BatchKey:
        """`Generation`'s: the same at every step."""
        return self._key

    @property
    def step_index(self) -> int:
        """`Generation`'s."""
        return self._step_index

    @property
    def num_steps(self) -> int:
        """`Generation`'s."""
        return self.table.num_steps

    @property
    def is_denoised(self) -> bool:
        """`Generation`'s: its latents wait to be decoded."""
        return self._step_index >= self.table.num_steps

    @property
    def num_full_steps_left(self) -> int:
        """`Generation`'s."""
        return self.step_cache.num_full_from(self._step_index)

    @property
    def is_full_step(self) -> bool:
        """`Generation`'s."""
        return self.step_cache.is_full(self._step_index)

    @property
    def is_guided(self) -> bool:
        """Whether its next step needs an unconditional row besides the conditional one."""
        return self._step_index < self._num_guided_steps

    @property
    def num_rows(self) -> int:
        """`Generation`'s."""
        return 2 if self.is_guided else 1

    @property
    def step_cache_bytes(self) -> int:
        """`Generation`'s."""
        return self.step_cache.num_bytes

    @property
    def latents(self) -> Tensor:
        """Its own, `(1, C, h, w)`."""
        return self.company.latents_of(self)

    def draw_noise(self, out: Tensor) -> None:
        """This step's noise into `out` `(1, C, h, w)`, on the CPU, from the request's own generator.

        The same if asked again before `commit_step`, since a step that fails is taken again in parts.
        """
        if self._noise is None:
            self._noise = out.normal_(generator=self.generator)
        else:
            out.copy_(self._noise)

    def commit_step(self, num_members: int) -> None:
        """Move on by one step that ran in a step batch of `num_members` generations."""
        super().commit_step(num_members)
        self._noise = None
        self._step_index += 1
        if self.step_cache.is_used:
            self.step_cache.drop_unneeded(self._step_index, is_guided=self.is_guided)

    def drop_tensors(self) -> None:
        """`Generation`'s: latents, noise, encodings and the step cache."""
        self.step_cache.clear()
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor | Encoding | Company):
                delattr(self, name)
