"""One step batch through the samplers: rows grouped by update, their scalars gathered, one call a group.

Owns the grouping and the gathering, which reads each row and changes none: who asks commits the outcome
when the whole step has succeeded, so a step that failed can be taken again in parts.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from engine.sampling.table import CoefficientTable, Update
from engine.sampling.update import advance, scale_model_input


class Row(Protocol):
    """One request's place in its trajectory."""

    table: CoefficientTable
    step_index: int
    history: Tensor | None  # (1, C, h, w): the x_0 predicted one step before; multistep schedulers only

    def draw_noise(self) -> Tensor:
        """This step's noise `(1, C, h, w)` from the request's own generator; the same if asked again."""


def scale_rows(rows: Sequence[Row], latents: Tensor) -> Tensor:
    """What the model sees of latents `(B, C, h, w)`, row by row; where no scheduler scales, the latents."""
    if not any(row.table.is_input_scaled for row in rows):
        return latents
    divisors = _gather(latents, [row.table.divisors[row.step_index] for row in rows])
    return scale_model_input(latents, divisors.view(-1, 1, 1, 1))


def advance_rows(
    rows: Sequence[Row], model_output: Tensor, latents: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    """The latents `(B, C, h, w)` after this step, and what each row must remember for its next one."""
    updates = [row.table.updates[row.step_index] for row in rows]
    if all(update is updates[0] for update in updates):
        return _advance_group(updates[0], rows, model_output, latents)
    groups: dict[Update, list[int]] = {}
    for index, update in enumerate(updates):
        groups.setdefault(update, []).append(index)
    following = torch.empty_like(latents)
    histories: list[Tensor | None] = [None] * len(rows)
    for update, indices in groups.items():
        which = torch.tensor(indices).to(latents.device, non_blocking=True)
        group = [rows[index] for index in indices]
        following[which], remembered = _advance_group(update, group, model_output[which], latents[which])
        for index, history in zip(indices, remembered, strict=True):
            histories[index] = history
    return following, histories


def _advance_group(
    update: Update, group: Sequence[Row], model_output: Tensor, latents: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    coefficients = _gather(latents, [row.table.columns[row.step_index] for row in group], dim=1)
    columns = coefficients.view(-1, len(group), 1, 1, 1)
    noise = torch.cat([row.draw_noise() for row in group]) if update.is_stochastic else None
    previous = None
    if update.order > 1:
        previous = torch.cat([row.history for row in group if row.history is not None])
    following, original = advance(update, model_output, latents, columns, noise, previous)
    return following, [None] * len(group) if original is None else list(original.unsqueeze(1).unbind(0))


def _gather(like: Tensor, scalars: list[Tensor], dim: int = 0) -> Tensor:
    gathered = torch.stack(scalars, dim)
    return gathered if like.device.type == "cpu" else gathered.to(like.device, non_blocking=True)
