"""The step cache of one generation: the features of its last full step, which its cached steps reuse.

Which steps are full is decided in `catalogue.step_cache`.
"""

from torch import Tensor

from catalogue.step_cache import is_full_step, num_full_steps


class StepCache:
    """The features of one generation; with `interval` 1 every step is full and nothing is stored."""

    def __init__(self, interval: int, num_steps: int) -> None:
        self.interval = interval
        self._num_steps = num_steps
        self._features: dict[bool, Tensor] = {}  # is the row the unconditional one? -> features (1, ...)

    @property
    def is_used(self) -> bool:
        """Whether any step may be cached."""
        return self.interval > 1

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds, in the device's memory unless `leave_device` moved them."""
        return sum(kept.numel() * kept.element_size() for kept in tuple(self._features.values()))

    def is_full(self, step_index: int) -> bool:
        """Whether this step runs the whole model."""
        return is_full_step(step_index, self.interval, self._num_steps)

    def num_full_from(self, step_index: int) -> int:
        """The number of steps, from this one on, that run the whole model."""
        return num_full_steps(self.interval, self._num_steps, first=step_index)

    def keep(self, features: Tensor, *, is_negative: bool) -> None:
        """Keep a copy of one row's features `(1, ...)`; a view would keep those of the whole step batch."""
        self._features[is_negative] = features.clone()

    def kept(self, *, is_negative: bool) -> Tensor:
        """One row's features `(1, ...)` from the last full step."""
        return self._features[is_negative]

    def leave_device(self) -> None:
        """Move the features to main memory, where the next step finds them; their values do not change."""
        self._features = {is_negative: kept.cpu() for is_negative, kept in self._features.items()}

    def clear(self) -> None:
        """Free all features."""
        self._features.clear()

    def drop_unneeded(self, step_index: int, *, is_guided: bool) -> None:
        """Free the features that the next step, `step_index`, does not read: all before a full step."""
        if step_index >= self._num_steps or self.is_full(step_index):
            self._features.clear()
        elif not is_guided:
            self._features.pop(True, None)
