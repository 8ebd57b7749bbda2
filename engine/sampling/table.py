"""One scheduler at one number of steps, as scalars: what every step of a request multiplies by.

Owns the two nouns and no formula; it does not know how a table is made nor what is done with it.
"""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True)
class Update:
    """Which formula takes a row to its next step; rows of equal updates are advanced in one call."""

    scheduler: str
    prediction_type: str
    is_stochastic: bool = False  # draws noise at this step
    is_input_scaled: bool = False  # the model sees latents / divisor, the first coefficient
    order: int = 1  # 2: also reads the history, the x_0 that was predicted one step before


@dataclass(frozen=True, eq=False)
class CoefficientTable:
    """One scheduler at one number of steps, n = `num_steps`, as scalars."""

    updates: tuple[Update, ...]  # n: a multistep or stochastic scheduler's last step is another than the rest
    timesteps: Tensor  # (n,) fp32: exact for the integers that most schedulers use
    coefficients: Tensor  # (n, k) fp32, in the order that the update unpacks
    init_noise_sigma: Tensor | float

    @property
    def num_steps(self) -> int:
        """Steps of the request: as many as it asked for, or one more where a spacing rounds so."""
        return len(self.updates)

    def __post_init__(self) -> None:
        # Equal updates are one object, so that a step batch is grouped without comparing their fields.
        object.__setattr__(self, "updates", tuple(_UPDATES.setdefault(one, one) for one in self.updates))

    @cached_property
    def packed(self) -> tuple[bytes, ...]:
        """n of 4 k bytes: the coefficients of each step, each ready to be joined with other rows'."""
        return tuple(row.tobytes() for row in self.coefficients.numpy())


_UPDATES: dict[Update, Update] = {}
