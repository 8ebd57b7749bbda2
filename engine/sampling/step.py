"""Steps of a step batch through the samplers: what the model sees, the noise, and the update by groups.

It keeps from step to step what stays the same, reads each row and changes none: who asks commits the
outcome when the whole step has succeeded, so a step that failed can be taken again in parts.
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

    @property
    def step_index(self) -> int:
        """Steps done."""

    def draw_noise(self, out: Tensor) -> None:
        """This step's noise into `out` `(1, C, h, w)`, on the CPU, from the request's own generator.

        The same if asked again. The row may keep `out`, which is not written again.
        """


class SamplerStep:
    """What the samplers do to rows that go on together on `device`; `prepare` comes before each step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._updates: list[Update] = []
        self._groups: list[_Group] = []

    def prepare(self, rows: Sequence[Row]) -> None:
        """Read where the rows are: group them by update where that has changed, and gather their scalars."""
        updates = [row.table.updates[row.step_index] for row in rows]
        if updates == self._updates:
            for group in self._groups:
                group.gather(rows)
            return
        places: dict[Update, list[int]] = {}
        for place, update in enumerate(updates):
            places.setdefault(update, []).append(place)
        self._groups = [_Group(update, rows, of_update, self._device) for update, of_update in places.items()]
        self._updates = updates

    def scale(self, latents: Tensor) -> Tensor:
        """What the model sees of latents `(B, C, h, w)`: themselves where no scheduler scales them."""
        scaled = latents
        for group in self._groups:
            if group.update.is_input_scaled:
                if group.which is None:
                    return scale_model_input(latents, group.columns[0])
                scaled = latents.clone() if scaled is latents else scaled
                scaled[group.which] = scale_model_input(latents[group.which], group.columns[0])
        return scaled

    def advance(
        self, rows: Sequence[Row], model_output: Tensor, latents: Tensor, history: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The latents `(B, C, h, w)` after this step, and the history that the next one reads, or None.

        `history` `(B, C, h, w)` is what the last step returned so; only rows of multistep schedulers that
        have taken a step need one, and what the other rows hold there means nothing. Both lie in memory as
        `latents` do, contiguous, whatever the model's output does.
        """
        # A channels_last model's is not, and what came of it would be neither: `normal_` draws other numbers
        # into another layout, which mates of another update would turn back.
        model_output = model_output.contiguous()
        if self._groups[0].which is None:
            return _advance(self._groups[0], rows, model_output, latents, history)
        following, remembered = torch.empty_like(latents), None
        for group in self._groups:
            which = group.which
            previous = None if history is None else history[which]
            following[which], original = _advance(group, rows, model_output[which], latents[which], previous)
            if original is not None:
                remembered = torch.zeros_like(latents) if remembered is None else remembered
                remembered[which] = original
        return following, remembered


class _Group:
    """Rows of one update, and their scalars, which stand in the same memory at every step."""

    def __init__(self, update: Update, rows: Sequence[Row], places: list[int], device: torch.device) -> None:
        self.update = update
        self._places = places
        is_all = len(places) == len(rows)
        self.which = None if is_all else torch.tensor(places).to(device)  # None: all of the step batch
        self._packed = bytearray(self._pack(rows))
        self._host = torch.frombuffer(self._packed, dtype=torch.float32).view(len(places), -1, 1, 1, 1)
        self._own = self._host.to(device)  # the same tensor where that is the CPU
        self.columns = self._own.unbind(1)  # k of (b, 1, 1, 1)

    def of(self, rows: Sequence[Row]) -> list[Row]:
        """Its own of a step batch's rows; it holds none, so that no row outlives its owner."""
        return [rows[place] for place in self._places]

    def gather(self, rows: Sequence[Row]) -> None:
        """Read the rows' scalars anew."""
        self._packed[:] = self._pack(rows)
        if self._own is not self._host:
            self._own.copy_(self._host)

    def _pack(self, rows: Sequence[Row]) -> bytes:
        # Joining bytes is the cheapest way to a few scalars of many rows.
        return b"".join([row.table.packed[row.step_index] for row in self.of(rows)])


def _advance(
    group: _Group, rows: Sequence[Row], model_output: Tensor, latents: Tensor, history: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    noise = _draw(group.of(rows), latents) if group.update.is_stochastic else None
    return advance(group.update, model_output, latents, group.columns, noise, history)


def _draw(rows: Sequence[Row], like: Tensor) -> Tensor:
    noise = torch.empty_like(like, device="cpu")
    for row, own in zip(rows, noise.unsqueeze(1).unbind(0), strict=True):
        row.draw_noise(own)
    return noise.to(like.device)
