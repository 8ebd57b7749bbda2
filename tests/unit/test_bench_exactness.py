"""The measurement of exactness counts what it says: an image that differs lowers the share."""

import torch
from torch import Tensor

from bench.exactness import MODEL, exact_share, idle_share
from engine.families.family import Conditions
from engine.load import LoadedModels
from tests.unit.engine.fakes import FakeFamily, NeighbourDependent

LIMITS = {MODEL: {128 * 128: 16, 192 * 192: 8}}


class SlowFamily(FakeFamily):
    """Long enough in a forward pass that the time between two ticks is small beside it."""

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        torch.randn(256, 256) @ torch.randn(256, 256)
        return super().predict(latents, timesteps, conditions)


def test_share_is_one_where_rows_are_exact_and_less_where_neighbours_show() -> None:
    assert exact_share(LoadedModels({MODEL: FakeFamily()}, LIMITS, "exact"), 1)[0] == 1.0
    value, low, high, samples = exact_share(
        LoadedModels({MODEL: NeighbourDependent(difference=0.5)}, LIMITS, "exact"), 2
    )
    assert value < 1.0
    assert low == min(samples)
    assert high == max(samples)


def test_idle_share_is_a_share() -> None:
    value, *_ = idle_share(LoadedModels({MODEL: SlowFamily()}, LIMITS, "exact"), 1, 4)
    assert 0 < value < 1
