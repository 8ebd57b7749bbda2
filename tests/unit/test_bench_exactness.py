"""The measurement of exactness counts what it says: an image that differs lowers the share."""

import torch
from torch import Tensor

from bench.exactness import MODEL, exact_share, idle_share, padding_cost
from engine.loading.load import LoadedModels
from tests.unit.engine.fakes import FakeDenoiser, FakeModel, NeighbourDependent

LIMITS = {MODEL: {128 * 128: 16, 192 * 192: 8}}


class SlowDenoiser(FakeDenoiser):
    """Long enough in a forward pass that the time between two ticks is small beside it."""

    def predict(self, sample: Tensor, timestep: Tensor, marks: Tensor) -> Tensor:
        torch.randn(256, 256) @ torch.randn(256, 256)
        return super().predict(sample, timestep, marks)


def loaded(denoiser: FakeDenoiser) -> LoadedModels:
    return LoadedModels({MODEL: FakeModel(denoiser=denoiser)}, LIMITS, "exact")


def test_share_is_one_where_rows_are_exact_and_less_where_neighbours_show() -> None:
    assert exact_share(loaded(FakeDenoiser()), 1)[0] == 1.0
    value, low, high, samples = exact_share(loaded(NeighbourDependent(difference=0.5)), 2)
    assert value < 1.0
    assert low == min(samples)
    assert high == max(samples)


def test_idle_share_is_a_share() -> None:
    value, *_ = idle_share(loaded(SlowDenoiser()), 1, 4)
    assert 0 < value < 1


def test_padding_is_measured_at_the_bucket_beside_the_rows_of_the_request() -> None:
    denoiser = FakeDenoiser()
    model = LoadedModels({MODEL: FakeModel(denoiser=denoiser)}, LIMITS, "exact")
    for num_rows in (1, 2):
        denoiser.step_sizes.clear()
        padding_cost(model, 128 * 128, num_rows, num_repeats=2)
        assert denoiser.step_sizes == [4, num_rows, num_rows, 4, num_rows, 4]
