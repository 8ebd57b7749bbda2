"""A generation's step cache: when it runs the whole model, and what its rows keep from one full step on.

The rule looks at the generation's own step index alone, so that no batch mate can change an image. A full
step leaves its rows' features, the deep part's output; the shallow steps after it stand on them.
"""

from torch import Tensor

NUM_FIRST_FULL_STEPS = 4
NUM_LAST_FULL_STEPS = 1
"""The layout is decided in the first steps and the pixels in the last one; a few-step job skips nothing."""


class StepCache:
    """Of one generation; `interval` 1 means that every step is full and nothing is kept."""

    def __init__(self, interval: int, num_steps: int) -> None:
        self.interval = interval
        self._num_steps = num_steps
        self._features: dict[bool, Tensor] = {}  # whether the row is unconditional -> (1, ...)

    @property
    def is_used(self) -> bool:
        """Whether any step may be shallow."""
        return self.interval > 1

    @property
    def num_bytes(self) -> int:
        """What it holds, in the device's memory unless it has left that."""
        return sum(kept.numel() * kept.element_size() for kept in tuple(self._features.values()))

    def is_full(self, step_index: int) -> bool:
        """Whether this step runs the whole model: every `interval`-th, the first four and the last."""
        return (
            step_index % self.interval == 0
            or step_index < NUM_FIRST_FULL_STEPS
            or step_index >= self._num_steps - NUM_LAST_FULL_STEPS
        )

    def num_full_from(self, step_index: int) -> int:
        """How many of the steps from this one on run the whole model."""
        if self.interval == 1:
            return self._num_steps - step_index
        return sum(map(self.is_full, range(step_index, self._num_steps)))

    def keep(self, features: Tensor, *, is_negative: bool) -> None:
        """Store one row's features `(1, ...)`; a copy, since a view would hold the whole step batch's."""
        self._features[is_negative] = features.clone()

    def kept(self, *, is_negative: bool) -> Tensor:
        """One row's features `(1, ...)` of the last full step."""
        return self._features[is_negative]

    def leave_device(self) -> None:
        """Move what it holds to main memory, whence the next step fetches it: numbers stay as they are."""
        self._features = {is_negative: kept.cpu() for is_negative, kept in self._features.items()}

    def clear(self) -> None:
        """Let go of everything, at the end."""
        self._features.clear()

    def drop_unneeded(self, step_index: int, *, is_guided: bool) -> None:
        """Free what the step `step_index`, the next one, does not read: all of it before a full step."""
        if step_index >= self._num_steps or self.is_full(step_index):
            self._features.clear()
        elif not is_guided:
            self._features.pop(True, None)
