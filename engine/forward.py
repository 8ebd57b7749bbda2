"""The rows of one forward pass: in which order they run, how they are padded, and how deep each one goes.

Rows that run the whole model stand first, shallow ones behind them, padding last, so that the deep part
and the whole pass each run at a bucket's number of rows: an image then depends on no batch mate. It knows
neither samplers nor guidance scales.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.families.family import CachingFamily, Conditions, Encoding, Family
from engine.native_generation import NativeGeneration


class ForwardPass:
    """Of one step batch: a conditional row for every member, an unconditional one for every guided one."""

    def __init__(self, members: Sequence[NativeGeneration], bucket_rows: Callable[[int], int]) -> None:
        self._members = members
        self._bucket_rows = bucket_rows
        self.guided = [index for index, member in enumerate(members) if member.is_guided]
        rows = [(index, False) for index in range(len(members))] + [(index, True) for index in self.guided]
        is_full = [members[index].step_cache.is_full(members[index].step_index) for index, _ in rows]
        order = sorted(range(len(rows)), key=lambda row: not is_full[row])  # stable: full ones first
        self._places = sorted(range(len(rows)), key=lambda row: order[row])  # where each row stands
        self._num_rows, self._num_full = len(rows), sum(is_full)
        # Padding repeats the last row: ordinary numbers, which raise nothing and are as fast as any.
        order += order[-1:] * (bucket_rows(len(rows)) - len(rows))
        self._rows = [rows[row] for row in order]

    @property
    def member_indices(self) -> list[int]:
        """Whose row each one is, padding included."""
        return [index for index, _ in self._rows]

    @property
    def encodings(self) -> list[Encoding]:
        """The text of each row, padding included."""
        return [
            self._members[index].negative_encoding if is_negative else self._members[index].encoding
            for index, is_negative in self._rows
        ]

    def predict(self, family: Family, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The model output `(R, C, h, w)`: a conditional row for every member, then unconditional ones.

        The arguments' rows are in the pass' own order. What full rows leave for later steps is kept at
        once: a step that fails afterwards is the same full step when it is run again.
        """
        if not any(member.step_cache.is_used for member in self._members):
            return family.predict(latents, timesteps, conditions)[: self._num_rows]
        if not isinstance(family, CachingFamily):
            raise TypeError("a step cache was asked of a family that has none")
        shallow = self._rows[self._num_full :] if self._num_full < self._num_rows else []
        kept = [
            self._members[index].step_cache.kept(is_negative=is_negative).to(latents.device)
            for index, is_negative in shallow
        ]
        output, features = family.predict_partly(
            latents,
            timesteps,
            conditions,
            num_deep_rows=self._bucket_rows(self._num_full),
            features=torch.cat(kept) if kept else None,
        )
        for place, (index, is_negative) in enumerate(self._rows[: self._num_full]):
            cache = self._members[index].step_cache
            if cache.is_used:
                cache.keep(features[place : place + 1], is_negative=is_negative)
        return output[torch.tensor(self._places).to(output.device, non_blocking=True)]
