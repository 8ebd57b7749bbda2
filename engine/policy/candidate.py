"""The facts of a generation that the policy may use, and the key that two must share for one forward pass.

Owns the batch key. It does not know tensors, nor which generation runs next.
"""

from typing import NamedTuple, Protocol


class BatchKey(NamedTuple):
    """What must match for two generations to share a forward pass; seeds, steps and scales may differ."""

    model: str
    latent_height: int
    latent_width: int
    is_pinned: bool = False  # strict, below the determinism level `exact`: at most `PINNED_ROWS` rows
    is_alone: bool = False  # strict, if other members of the batch change bits: one generation a step batch


class Candidate(Protocol):
    """The facts of a generation that the policy may use."""

    @property
    def key(self) -> BatchKey:
        """Generations of equal keys may share a forward pass."""

    @property
    def signature(self) -> int:
        """Of generations of equal keys, those of equal signature share one; it can change at each step."""

    @property
    def lane(self) -> str:
        """`interactive` or `bulk`."""

    @property
    def account(self) -> str:
        """An opaque label of its owner: generations of one account share its turns."""

    @property
    def is_isolated(self) -> bool:
        """Whether nothing else may run between its first and its last step."""

    @property
    def has_begun(self) -> bool:
        """Whether its first step has started."""

    @property
    def num_rows(self) -> int:
        """Rows of the next step: two with guidance, else one."""

    @property
    def num_steps(self) -> int:
        """The total number of steps."""

    @property
    def num_steps_left(self) -> int:
        """The number of steps still to run."""

    @property
    def num_full_steps_left(self) -> int:
        """Steps to run that are not cached; cached ones take little time beside them."""

    @property
    def submitted_at(self) -> float:
        """The instant of its arrival, on the policy's clock."""

    @property
    def deadline_at(self) -> float | None:
        """The instant at which it is dropped, on the policy's clock."""
