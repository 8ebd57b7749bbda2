"""The start-up self-test promises what this machine does, no more."""

import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from engine.buckets import MULTIPLES_OF_FOUR, at
from engine.compilation import compile_sizes
from engine.families.family import Conditions, Encoding
from engine.load import ModelSpec, _tested
from engine.rehearsal import is_exact_in_company
from engine.self_test import Promise, run_self_test
from engine.time_budget import TimeBudget
from tests.unit.engine.fakes import FakeFamily, NeighbourDependent, SetClock, SizeDependent


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


@dataclass
class Blending(SizeDependent):
    """Its decoder shows whether others were in the step batches since the last image, of whatever size."""

    had_mates: bool = False

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        self.had_mates |= len(timesteps.unique()) > 1
        return super().predict(latents, timesteps, conditions)

    def decode(self, latents: Tensor) -> Tensor:
        pixels = super().decode(latents) * (0.5 if self.had_mates else 1.0)
        self.had_mates = False
        return pixels


def test_rows_that_never_change_are_exact() -> None:
    result = run_self_test(FakeFamily(), {4096: 16, 16384: 8})
    assert result.promise == "exact"
    assert result.row_limits == {4096: 16, 16384: 8}
    assert result.buckets[8, 8].sizes == tuple(range(1, 17))
    assert result.buckets[16, 16].sizes == tuple(range(1, 9))


def test_row_counts_that_differ_are_no_buckets() -> None:
    result = run_self_test(Odd(), {4096: 12, 16384: 8})
    assert result.promise == "exact"
    assert result.buckets[8, 8].sizes == (2, 4, 6, 8, 10, 12)
    assert at(result.buckets, 8, 8).rows(1) == 2
    assert at(result.buckets, 8, 12).rows(1) == 4, "a shape that was not tried"


def test_compiled_model_has_few_buckets_since_each_is_compiled() -> None:
    assert run_self_test(FakeFamily(), {4096: 12}, is_compiled=True).buckets[8, 8].sizes == (2, 4, 8, 12)


def test_slow_model_is_tried_at_few_row_counts() -> None:
    family = FakeFamily()
    assert run_self_test(family, {4096: 12}, fine_seconds=0.0).buckets[8, 8].sizes == (2, 4, 8, 12)
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
    assert result.buckets == {(8, 8): MULTIPLES_OF_FOUR}, "tried nonetheless"


def test_neighbours_that_show_leave_the_weakest_promise() -> None:
    assert run_self_test(NeighbourDependent(), {4096: 8}).promise == "within 1/255"


def test_numbers_that_wander_leave_no_promise_at_all() -> None:
    assert run_self_test(Wandering(), {4096: 8}).promise == "not repeatable"


def test_what_happens_between_forward_passes_is_rehearsed_in_company() -> None:
    assert run_self_test(Leaking(), {4096: 8}).promise == "exact"
    assert not is_exact_in_company(Leaking(), {4096: 8})
    assert is_exact_in_company(FakeFamily(), {4096: 8, 16384: 4})


def test_promise_within_a_bucket_is_rehearsed_with_strict_requests() -> None:
    """They share step batches of 4 rows there, as the requests of a worker do; others promise nothing."""
    promise: Promise = "exact within a bucket"
    limits = {4096: 16}
    rounding = SizeDependent(difference=0.1)
    assert not is_exact_in_company(rounding, limits), "with requests that are not strict"
    assert is_exact_in_company(rounding, limits, promise=promise)
    assert not is_exact_in_company(Blending(), limits, promise=promise)


@pytest.mark.parametrize(
    ("family", "promise"), [(SizeDependent, "exact within a bucket"), (Blending, "within 1/255")]
)
def test_no_promise_about_company_is_given_without_a_rehearsal(
    family: type[FakeFamily], promise: Promise
) -> None:
    assert run_self_test(family(), {4096: 16}).promise == "exact within a bucket"
    assert _tested(ModelSpec("m", "nowhere"), family(), {4096: 16}, TimeBudget()).promise == promise


def test_caps_below_the_smallest_bucket_stay() -> None:
    assert run_self_test(FakeFamily(), {4096: 2}).row_limits == {4096: 2}
    assert torch.is_inference_mode_enabled() is False


@dataclass
class Holding(FakeFamily):
    """Notes whether what did not fit was still held when the next forward pass began."""

    lost: weakref.ref[Tensor] | None = None
    was_held: bool = False

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        if self.lost is not None:
            self.was_held |= self.lost() is not None
        if len(latents) > self.max_rows:
            self.lost = weakref.ref(latents)
        return super().predict(latents, timesteps, conditions)


@pytest.mark.parametrize(
    ("fine_seconds", "cap", "sizes"), [(0.5, 10, tuple(range(1, 11))), (0.0, 8, (2, 4, 8))]
)
def test_cap_too_high_for_the_memory_is_lowered_to_what_fits(
    caplog: pytest.LogCaptureFixture, fine_seconds: float, cap: int, sizes: tuple[int, ...]
) -> None:
    family = Holding(max_rows=10)
    result = run_self_test(family, {4096: 64, 16384: 8}, fine_seconds=fine_seconds)
    assert result.promise == "exact"
    assert result.row_limits == {4096: cap, 16384: 8}
    assert result.buckets[8, 8].sizes == sizes
    assert family.lost is not None
    assert not family.was_held
    assert f"do not fit, so its step batches are kept to {cap}" in caplog.text


def test_cap_is_lowered_to_what_fits_where_large_step_batches_differ_too() -> None:
    result = run_self_test(SizeDependent(from_rows=8, max_rows=20), {4096: 64})
    assert result.promise == "exact within a bucket"
    assert result.row_limits == {4096: 20}


def test_model_of_which_not_even_a_bucket_fits_cannot_be_tested() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        run_self_test(FakeFamily(max_rows=3), {4096: 64})


def test_sizes_that_are_compiled_lower_the_cap_of_their_class_to_what_fits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    family = FakeFamily(max_rows=10)
    limits = compile_sizes(family, [(64, 64), (32, 64), (128, 64)], {4096: 16, 16384: 8}, TimeBudget())
    assert limits == {4096: 8, 16384: 8}
    assert family.step_sizes == [4, 8, 12, 4, 8, 4, 8]
    assert "out_of_memory: 12 rows of 64x64 pixels do not fit" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        compile_sizes(FakeFamily(max_rows=3), [(64, 64)], {4096: 16}, TimeBudget())


def slow(family: FakeFamily, clock: SetClock, seconds: float) -> FakeFamily:
    """Each of its forward passes takes that long."""

    def pass_time() -> None:
        clock.now += seconds

    family.on_predict = pass_time
    return family


@pytest.mark.parametrize(("seconds", "taken"), [(0.5, 40.0), (35.0, 70.0)])
def test_budget_that_does_not_last_leaves_a_weaker_promise_and_every_cap(
    seconds: float, taken: float
) -> None:
    """The two runs alone at each tier, and the buckets that were begun in time."""
    clock = SetClock()
    family = slow(SizeDependent(from_rows=16), clock, 10.0)
    result = run_self_test(family, {4096: 16, 16384: 8}, TimeBudget(seconds, clock))
    assert result.promise == "within 1/255"
    assert result.row_limits == {4096: 16, 16384: 8}
    assert clock.now == 1000.0 + taken


def test_a_bucket_that_would_not_fit_into_what_is_left_is_not_begun() -> None:
    clock = SetClock()
    family = slow(FakeFamily(), clock, 10.0)
    budget = TimeBudget(65.0, clock)  # 20 s alone, 30 s among 4 rows, 10 s for one row
    assert run_self_test(family, {4096: 16}, budget).promise == "within 1/255"
    assert max(family.step_sizes) == 4
    assert clock.now == 1060.0
    assert budget.is_spent(), "so that whoever asks next knows that something was left out"


def test_numbers_that_wander_are_found_out_on_any_budget() -> None:
    """A strict request runs alone under the weakest promise, which must be true of it."""
    assert run_self_test(Wandering(), {4096: 8}, TimeBudget(0.0)).promise == "not repeatable"


def test_a_budget_that_lasts_changes_nothing() -> None:
    clock = SetClock()
    family = slow(SizeDependent(from_rows=12), clock, 10.0)
    assert run_self_test(family, {4096: 16}, TimeBudget(600.0, clock)) == run_self_test(
        SizeDependent(from_rows=12), {4096: 16}
    )
    assert is_exact_in_company(family, {4096: 8}, TimeBudget(6000.0, clock))


def test_images_that_were_not_all_drawn_in_time_are_not_taken_for_exact() -> None:
    clock = SetClock()
    family = slow(FakeFamily(), clock, 10.0)
    assert not is_exact_in_company(family, {4096: 8}, TimeBudget(100.0, clock))
    assert clock.now == 1100.0


def test_a_prompt_is_encoded_as_often_whatever_the_row_counts_that_are_tried() -> None:
    """A text encoder may be larger than the model."""

    def num_encoded(max_rows: int) -> int:
        texts: list[str] = []
        family = FakeFamily()
        encode = family.encode

        def noting(text: str, *, is_negative: bool = False) -> Encoding:
            texts.append(text)
            return encode(text, is_negative=is_negative)

        family.encode = noting  # type: ignore[method-assign]
        run_self_test(family, {64 * 64: max_rows})
        return len(texts)

    assert num_encoded(4) == num_encoded(16) <= 3
