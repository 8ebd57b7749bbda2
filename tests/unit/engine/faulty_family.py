"""A model of arithmetic that fails by schedule: the nth encoding, forward pass or decoding, and bad prompts.

It notes whom each fault hit while nobody else was in the same call: those alone may be charged.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from engine.families.family import Conditions, Encoding
from tests.unit.engine.fakes import FakeCachingFamily

Kind = Literal["encode", "predict", "decode"]
Fault = Literal["out of memory", "exception", "not a number", "device lost", "slow"]
CULPRITS = ("explode", "not a number", "huge", "cannot be encoded")


@dataclass
class FaultyFamily(FakeCachingFamily):
    """Prompts are a word and a number, `fine 3`: the word is what it does, the number whose it is."""

    faults: Mapping[tuple[Kind, int], Fault] = field(default_factory=dict)
    on_slow: Callable[[], None] = lambda: None
    num_calls: dict[Kind, int] = field(default_factory=lambda: {"encode": 0, "predict": 0, "decode": 0})
    charged: set[int] = field(default_factory=set)  # by encodings and forward passes
    num_decodings_charged: int = 0
    times_without_room: Counter[int] = field(default_factory=Counter)  # at encoding
    alone_without_room: set[int] = field(default_factory=set)  # in the forward pass before
    spoiled: Tensor | None = None  # which rows of the last forward pass are no numbers

    def encode(self, text: str, *, is_negative: bool = False) -> Encoding:
        word, _, number = text.rpartition(" ")
        fault = self._fault("encode")
        self.times_without_room[int(number)] += fault == "out of memory"
        if fault == "exception" or self.times_without_room[int(number)] > 1:
            self.charged.add(int(number))
        self._raise(fault)
        mark = super().encode(word, is_negative=is_negative).prompt_embeds
        if fault == "not a number":
            self.charged.add(int(number))
            mark = mark.fill_(2.0)
        return Encoding(torch.cat([mark, torch.full_like(mark, float(number))], dim=2))

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        marks, numbers = conditions.prompt_embeds[:, 0].unbind(1)
        present = {int(number) for number in numbers.tolist()}
        fault = self._fault("predict")
        self.spoiled = None
        alone = present if len(present) == 1 else set()
        is_out_of_memory = fault == "out of memory"
        is_second = alone == self.alone_without_room  # the first may be somebody else's memory
        if fault not in (None, "slow") and (is_second or not is_out_of_memory):
            self.charged |= alone
        self.alone_without_room = alone if is_out_of_memory else set()
        self._raise(fault)
        told = replace(conditions, prompt_embeds=marks.view(-1, 1, 1))
        output = super().predict(latents, timesteps, told)
        if fault == "not a number":
            self.spoiled = numbers == numbers[0]
            output[self.spoiled] = float("nan")
            self.charged.add(int(numbers[0]))
        return output

    def predict_partly(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        *,
        num_deep_rows: int,
        features: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        output, kept = super().predict_partly(
            latents, timesteps, conditions, num_deep_rows=num_deep_rows, features=features
        )
        if self.spoiled is not None:
            output[self.spoiled] = float("nan")  # in a shallow row too
        return output, kept

    def decode(self, latents: Tensor) -> Tensor:
        fault = self._fault("decode")
        self.num_decodings_charged += fault in ("exception", "not a number")
        self._raise(fault)
        pixels = super().decode(latents)
        return pixels * float("nan") if fault == "not a number" else pixels

    def _fault(self, kind: Kind) -> Fault | None:
        self.num_calls[kind] += 1
        return self.faults.get((kind, self.num_calls[kind]))

    def _raise(self, fault: Fault | None) -> None:
        if fault == "out of memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if fault == "exception":
            raise ValueError("a kernel that does not like this")
        if fault == "device lost":
            raise RuntimeError("CUDA error: unspecified launch failure")
        if fault == "slow":
            self.on_slow()
