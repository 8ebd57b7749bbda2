"""What the policy may know of a generation, and what must match for two of them to share a forward pass.

Owns the batch key. It knows no tensors, and nothing of who runs next.
"""

from typing import NamedTuple, Protocol


class BatchKey(NamedTuple):
    """What must match for two generations to share a forward pass; seeds, steps and scales need not."""

    model: str
    latent_height: int
    latent_width: int
    is_pinned: bool = False  # strict, where the promise is not exact: `PINNED_ROWS` only
    is_alone: bool = False  # strict, where places and neighbours show too: one generation a step batch


class Candidate(Protocol):
    """All that the policy may know of a generation."""

    @property
    def key(self) -> BatchKey:
        """What it may share a forward pass with."""

    @property
    def signature(self) -> int:
        """Of equal keys, those of equal signature share a forward pass; it can be another at each step."""

    @property
    def lane(self) -> str:
        """`interactive` or `bulk`."""

    @property
    def account(self) -> str:
        """Whose it is: an opaque label, with which it shares its turns."""

    @property
    def is_isolated(self) -> bool:
        """Whether it must run alone."""

    @property
    def has_begun(self) -> bool:
        """Whether it has been given its first step."""

    @property
    def num_rows(self) -> int:
        """Rows of its next step: two with guidance, else one."""

    @property
    def num_steps(self) -> int:
        """Steps in all."""

    @property
    def num_steps_left(self) -> int:
        """Steps still to run."""

    @property
    def num_full_steps_left(self) -> int:
        """Those of them that run the whole model; what a shallow one takes beside them is little."""

    @property
    def submitted_at(self) -> float:
        """When it arrived, on the policy's clock."""

    @property
    def deadline_at(self) -> float | None:
        """When it is worth nothing any more, on the policy's clock."""
