"""Those who took their last step together, and their tensors, which stay in one piece for the next one.

A step batch seldom changes between two steps. Where it has not, nothing is gathered and nothing scattered;
where it has, those who go on form a new company, and only then are rows cut out and put side by side. It
knows no model and no order, and it is read and written by the engine thread alone.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from engine.sampling import Row, SamplerStep


class Member(Row, Protocol):
    """Whoever has latents; a company writes both."""

    company: "Company"
    place: int  # of its row in the company's tensors


class Company:
    """Members side by side: `latents` `(B, C, h, w)`, and `history` of the same shape or None.

    The history is the x_0 that a multistep scheduler predicted one step before; rows of others and rows
    that have taken no step hold anything there.
    """

    def __init__(self, members: Sequence[Member], latents: Tensor, history: Tensor | None = None) -> None:
        self.latents = latents
        self.history = history
        self._sampler_step: SamplerStep | None = None
        for place, member in enumerate(members):
            member.company, member.place = self, place

    @classmethod
    def of(cls, members: Sequence[Member]) -> "Company":
        """The company of just these members in this order: the one they are in, or a new one."""
        companies = [member.company for member in members]
        first = companies[0]
        is_theirs = companies.count(first) == len(members) == len(first.latents)
        if is_theirs and [member.place for member in members] == list(range(len(members))):
            return first
        latents = _rows({company: company.latents for company in companies}, members)
        history = None
        if any(company.history is not None for company in companies):
            held = {one: one.latents if one.history is None else one.history for one in companies}
            history = _rows(held, members)
        return cls(members, latents, history)

    def sampler_step(self, members: Sequence[Member]) -> SamplerStep:
        """What the samplers do to the members, which a company does not hold, at the step they are at."""
        if self._sampler_step is None:
            self._sampler_step = SamplerStep(self.latents.device)
        self._sampler_step.prepare(members)
        return self._sampler_step

    def commit(self, latents: Tensor, history: Tensor | None) -> None:
        """What a whole step that succeeded leaves behind; the members count their steps themselves."""
        self.latents, self.history = latents, history

    def latents_of(self, member: Member) -> Tensor:
        """One member's latents `(1, C, h, w)`, a view."""
        return self.latents[member.place : member.place + 1]


def _rows(held: Mapping[Company, Tensor], members: Sequence[Member]) -> Tensor:
    """The members' rows `(B, C, h, w)` of what their companies hold."""
    rows = {company: tensor.unsqueeze(1).unbind(0) for company, tensor in held.items()}
    return torch.cat([rows[member.company][member.place] for member in members])
