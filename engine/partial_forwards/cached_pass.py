"""A forward pass of pipeline calls of which some stand on features of an earlier step.

Calls whose step runs the whole model stand first, shallow ones behind them, padding last, so that the deep
part and the whole pass each run at a bucket's rows. It knows neither models nor the rule of a step cache.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.generation import Generation
from engine.partial_forwards import fitting


class CachedPass:
    """The pass of `members`, those of full steps first, through `walk`; `bucket_rows` sizes its deep part."""

    def __init__(
        self, members: Sequence[Generation], partial_forward: Any, bucket_rows: Callable[[int], int]
    ) -> None:
        self._members = members
        self._partial_forward = partial_forward
        self._num_full = sum(member.num_rows for member in members if member.is_full_step)
        self._num_full_rows = bucket_rows(self._num_full)

    def __call__(self, arguments: dict[str, Any]) -> tuple[Tensor]:
        """The output of the merged call as `forward` with these arguments gives it; keeps what is new."""
        named = fitting(self._partial_forward, arguments)
        first = next(iter(arguments.values()))
        output, new = self._partial_forward.predict(
            **named, num_full_rows=self._num_full_rows, features=self._features(len(first), first.device)
        )
        start = 0
        for member in self._members:
            if member.is_full_step and member.step_cache.is_used:
                member.step_cache.keep(new[start : start + member.num_rows], is_negative=_is_second(member))
            start += member.num_rows
        return (output,)

    def _features(self, num_rows: int, device: torch.device) -> Tensor | None:
        """Those of the shallow rows and the padding behind them `(N, ...)`; None where no row is shallow."""
        # Where guidance has been cut off since, the row that is left is the last one, with the prompt.
        kept = [
            member.step_cache.kept(is_negative=_is_second(member))[-member.num_rows :]
            for member in self._members
            if not member.is_full_step
        ]
        if not kept:
            return None
        features = torch.cat([one.to(device, non_blocking=True) for one in kept])
        num_padding = num_rows - self._num_full - len(features)
        return torch.cat([features, features[-1:].expand(num_padding, *features.shape[1:])])


def _is_second(member: Generation) -> bool:
    """Whether this is the second pass of a step: guidance can take two, and each has its own features."""
    if member.pass_in_step > 1:
        raise TypeError("a step cache cannot be used where a step has more than two passes")
    return member.pass_in_step == 1
