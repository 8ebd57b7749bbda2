"""The schedule of a step cache: which steps run the whole model, and which reuse the last full step.

The engine follows it and estimates use it. It looks only at a generation's own step index, so that an
image does not depend on its batch. The features that cached steps reuse are stored in the engine.
"""

MAX_STEP_CACHE = 8
"""The largest interval between full steps."""
NUM_FIRST_FULL_STEPS = 4
NUM_LAST_FULL_STEPS = 1
"""The first steps settle the layout and the last one the pixels, so a job of few steps skips none."""


def is_full_step(step_index: int, interval: int, num_steps: int) -> bool:
    """Whether this step runs the whole model: every `interval`-th one, the first four and the last."""
    return (
        step_index % interval == 0
        or step_index < NUM_FIRST_FULL_STEPS
        or step_index >= num_steps - NUM_LAST_FULL_STEPS
    )


def num_full_steps(interval: int, num_steps: int, *, first: int = 0) -> int:
    """How many of the steps from `first` on run the whole model."""
    if interval == 1:
        return num_steps - first
    return sum(is_full_step(index, interval, num_steps) for index in range(first, num_steps))
