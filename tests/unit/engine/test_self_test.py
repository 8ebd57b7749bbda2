"""The start-up self-test promises what this machine does, no more."""

import pytest
import torch
from torch import Tensor

from engine.families.family import Conditions
from engine.self_test import run_self_test
from tests.unit.engine.fakes import FakeFamily


class SizeDependent(FakeFamily):
    """Rounds differently from `from_rows` rows on, as a kernel chosen by shape does."""

    from_rows = 0

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        output = super().predict(latents, timesteps, conditions)
        return output + 1e-6 if len(latents) >= self.from_rows else output


class NeighbourDependent(FakeFamily):
    """A row's bits depend on the rows beside it."""

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        return super().predict(latents, timesteps, conditions) + latents.mean() * 1e-3


def test_rows_that_never_change_are_exact() -> None:
    result = run_self_test(FakeFamily(), {4096: 16, 16384: 8})
    assert result.promise == "exact"
    assert result.row_limits == {4096: 16, 16384: 8}


@pytest.mark.parametrize(("from_rows", "cap"), [(16, 12), (12, 8)])
def test_largest_buckets_that_differ_are_given_up_for_exactness(from_rows: int, cap: int) -> None:
    family = SizeDependent()
    family.from_rows = from_rows
    result = run_self_test(family, {4096: 16})
    assert result.promise == "exact"
    assert result.row_limits == {4096: cap}


def test_buckets_that_all_differ_are_kept_and_the_promise_is_weaker() -> None:
    family = SizeDependent()
    family.from_rows = 8
    result = run_self_test(family, {4096: 16})
    assert result.promise == "exact within a bucket"
    assert result.row_limits == {4096: 16}


def test_neighbours_that_show_leave_the_weakest_promise() -> None:
    assert run_self_test(NeighbourDependent(), {4096: 8}).promise == "within 1/255"


def test_caps_below_the_smallest_bucket_stay() -> None:
    assert run_self_test(FakeFamily(), {4096: 2}).row_limits == {4096: 2}
    assert torch.is_inference_mode_enabled() is False
