"""A model of arithmetic that fails by schedule: the nth encoding, forward pass or decoding, and bad prompts.

It records each request that a fault hit while it was alone in a call: only these may fail.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tests.unit.engine.fakes import (
    FakeCachingModel,
    FakeDenoiser,
    FakePipeline,
    FakeTextEncoder,
    FakeVAE,
    FakeWalk,
)

Kind = Literal["encode", "predict", "decode"]
Fault = Literal["out of memory", "exception", "not a number", "device lost", "slow"]
SamplerFault = Literal["raises", "not a number"]
CULPRITS = ("explode", "not a number", "huge", "cannot be encoded")


@dataclass
class Faults:
    """The faults, and the requests that may fail because of them.

    A prompt is a word and a number, such as `fine 3`: the word says what it does, the number is the
    request's.
    """

    by_call: Mapping[tuple[Kind, int], Fault] = field(default_factory=dict)
    samplers: dict[int, SamplerFault] = field(default_factory=dict)
    on_slow: Callable[[], None] = lambda: None
    num_calls: dict[Kind, int] = field(default_factory=lambda: {"encode": 0, "predict": 0, "decode": 0})
    charged: set[int] = field(default_factory=set)  # by encodings and forward passes
    num_decodings_charged: int = 0
    times_without_room: Counter[int] = field(default_factory=Counter)  # at encoding
    alone_without_room: set[int] = field(default_factory=set)  # in the forward pass before

    def next(self, kind: Kind) -> Fault | None:
        """The fault of this call, or None."""
        self.num_calls[kind] += 1
        return self.by_call.get((kind, self.num_calls[kind]))

    def happen(self, fault: Fault | None) -> None:
        """Raise the fault, or let its time pass."""
        if fault == "out of memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if fault == "exception":
            raise ValueError("a kernel that does not like this")
        if fault == "device lost":
            raise RuntimeError("CUDA error: unspecified launch failure")
        if fault == "slow":
            self.on_slow()


class FaultyTextEncoder(FakeTextEncoder):
    """Encodes a text as the number of its mark and of its request, `(1, 1, 2)`."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self.faults = faults

    def forward(self, text: str) -> Tensor:
        word, _, number = text.rpartition(" ")
        fault = self.faults.next("encode")
        self.faults.times_without_room[int(number)] += fault == "out of memory"
        if fault == "exception" or self.faults.times_without_room[int(number)] > 1:
            self.faults.charged.add(int(number))
        self.faults.happen(fault)
        mark = super().forward(word)
        if fault == "not a number":
            self.faults.charged.add(int(number))
            mark = torch.full_like(mark, 2.0)
        return torch.cat([mark, torch.full_like(mark, float(number))], dim=2)


class FaultyDenoiser(FakeDenoiser):
    """A denoiser that knows the request of each row."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self.faults = faults
        self.spoiled: Tensor | None = None  # rows of the last forward pass that are NaN

    def predict(self, sample: Tensor, timestep: Tensor, marks: Tensor) -> Tensor:
        faults, numbers = self.faults, marks[:, 0, 1]
        present = {int(number) for number in numbers.tolist()}
        fault = faults.next("predict")
        self.spoiled = None
        alone = present if len(present) == 1 else set()
        is_out_of_memory = fault == "out of memory"
        is_second = alone == faults.alone_without_room  # at first, others may have filled the memory
        if fault not in (None, "slow") and (is_second or not is_out_of_memory):
            faults.charged |= alone
        faults.alone_without_room = alone if is_out_of_memory else set()
        faults.happen(fault)
        output = super().predict(sample, timestep, marks)
        if fault == "not a number":
            self.spoiled = numbers == numbers[0]
            output[self.spoiled] = float("nan")
            faults.charged.add(int(numbers[0]))
        return output


class FaultyWalk(FakeWalk):
    """Cached rows fail like full ones."""

    def predict(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        num_full_rows: int,
        features: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        output, kept = super().predict(sample, timestep, encoder_hidden_states, num_full_rows, features)
        assert isinstance(self._denoiser, FaultyDenoiser)
        if self._denoiser.spoiled is not None:
            output[self._denoiser.spoiled] = float("nan")
        return output, kept


class FaultyVAE(FakeVAE):
    """A decoder that fails by schedule."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self.faults = faults

    def decode(self, latents: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        fault = self.faults.next("decode")
        self.faults.num_decodings_charged += fault in ("exception", "not a number")
        self.faults.happen(fault)
        (pixels,) = super().decode(latents, return_dict)
        return (pixels * float("nan") if fault == "not a number" else pixels,)


class FaultyPipeline(FakePipeline):
    """A pipeline whose own code between two forward passes fails for some requests."""

    faults: Faults

    def stepped(self, latents: Tensor, prompt: str) -> Tensor:
        fault = self.faults.samplers.get(int(prompt.rpartition(" ")[2]))
        if fault == "raises":
            raise ValueError("a formula with one coefficient too many")
        return latents * float("nan") if fault == "not a number" else latents


class FaultyModel(FakeCachingModel):
    """A loaded model whose parts fail by one list of faults."""

    pipeline_class = FaultyPipeline

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        denoiser = FaultyDenoiser(self.faults)
        super().__init__(
            denoiser=denoiser, text_encoder=FaultyTextEncoder(self.faults), vae=FaultyVAE(self.faults)
        )
        vars(self._pipeline)["faults"] = self.faults
        self.partial_forward = FaultyWalk(denoiser)
