"""The start-up self-test promises what this machine does, no more."""

import pytest
import torch
from torch import Tensor

from engine.families.family import Conditions
from engine.rehearsal import is_exact_in_company
from engine.self_test import run_self_test
from tests.unit.engine.fakes import FakeFamily, NeighbourDependent, SizeDependent


class Wandering(FakeFamily):
    """Never gives the same numbers twice, as sums by atomic additions do."""

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        return super().predict(latents, timesteps, conditions) + 1e-6 * len(self.step_sizes)


class Leaking(FakeFamily):
    """Its decoder shows how large the last step batch was, which no forward pass tells."""

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents) * (0.5 if self.step_sizes[-1] > 4 else 1.0)


def test_rows_that_never_change_are_exact() -> None:
    result = run_self_test(FakeFamily(), {4096: 16, 16384: 8})
    assert result.promise == "exact"
    assert result.row_limits == {4096: 16, 16384: 8}


@pytest.mark.parametrize(("from_rows", "cap"), [(16, 12), (12, 8)])
def test_largest_buckets_that_differ_are_given_up_for_exactness(from_rows: int, cap: int) -> None:
    family = SizeDependent(from_rows=from_rows)
    result = run_self_test(family, {4096: 16})
    assert result.promise == "exact"
    assert result.row_limits == {4096: cap}


def test_buckets_that_all_differ_are_kept_and_the_promise_is_weaker() -> None:
    family = SizeDependent(from_rows=8)
    result = run_self_test(family, {4096: 16})
    assert result.promise == "exact within a bucket"
    assert result.row_limits == {4096: 16}


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
