"""The start-up self-test promises what this machine does, no more."""

import pytest
import torch
from torch import Tensor

from engine.buckets import MULTIPLES_OF_FOUR
from engine.families.family import Conditions
from engine.rehearsal import is_exact_in_company
from engine.self_test import run_self_test
from tests.unit.engine.fakes import FakeFamily, NeighbourDependent, SizeDependent


class Wandering(FakeFamily):
    """Never gives the same numbers twice, as sums by atomic additions do."""

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        return super().predict(latents, timesteps, conditions) + 1e-6 * len(self.step_sizes)


class Odd(FakeFamily):
    """Odd row counts have a kernel of their own."""

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        return super().predict(latents, timesteps, conditions) + 1e-6 * (len(latents) % 2)


class Leaking(FakeFamily):
    """Its decoder shows how large the last step batch was, which no forward pass tells."""

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents) * (0.5 if self.step_sizes[-1] > 4 else 1.0)


def test_rows_that_never_change_are_exact() -> None:
    result = run_self_test(FakeFamily(), {4096: 16, 16384: 8})
    assert result.promise == "exact"
    assert result.row_limits == {4096: 16, 16384: 8}
    assert result.buckets.sizes == tuple(range(1, 17))


def test_row_counts_that_differ_at_either_size_are_no_buckets() -> None:
    result = run_self_test(Odd(), {4096: 12, 16384: 8})
    assert result.promise == "exact"
    assert result.buckets.sizes == (2, 4, 6, 8, 10, 12)
    assert result.buckets.rows(1) == 2


def test_compiled_model_has_few_buckets_since_each_is_compiled() -> None:
    assert run_self_test(FakeFamily(), {4096: 12}, is_compiled=True).buckets.sizes == (2, 4, 8, 12)


def test_slow_model_is_tried_at_few_row_counts() -> None:
    family = FakeFamily()
    assert run_self_test(family, {4096: 12}, fine_seconds=0.0).buckets.sizes == (2, 4, 8, 12)
    assert set(family.step_sizes) == {2, 4, 8, 12}


@pytest.mark.parametrize(("from_rows", "cap"), [(16, 15), (12, 11)])
def test_largest_row_counts_that_differ_are_given_up_for_exactness(from_rows: int, cap: int) -> None:
    family = SizeDependent(from_rows=from_rows)
    result = run_self_test(family, {4096: 16})
    assert result.promise == "exact"
    assert result.row_limits == {4096: cap}


def test_buckets_that_all_differ_are_kept_and_the_promise_is_weaker() -> None:
    family = SizeDependent(from_rows=8)
    result = run_self_test(family, {4096: 16})
    assert result.promise == "exact within a bucket"
    assert result.row_limits == {4096: 16}
    assert result.buckets == MULTIPLES_OF_FOUR


def test_neighbours_that_show_leave_the_weakest_promise() -> None:
    assert run_self_test(NeighbourDependent(), {4096: 8}).promise == "within 1/255"


def test_numbers_that_wander_leave_no_promise_at_all() -> None:
    assert run_self_test(Wandering(), {4096: 8}).promise == "not repeatable"


def test_what_happens_between_forward_passes_is_rehearsed_in_company() -> None:
    assert run_self_test(Leaking(), {4096: 8}).promise == "exact"
    assert not is_exact_in_company(Leaking(), {4096: 8})
    assert is_exact_in_company(FakeFamily(), {4096: 8, 16384: 4})


def test_caps_below_the_smallest_bucket_stay() -> None:
    assert run_self_test(FakeFamily(), {4096: 2}).row_limits == {4096: 2}
    assert torch.is_inference_mode_enabled() is False
