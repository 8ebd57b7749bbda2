"""Measuring finds the costs that a fake model was given, even if a round is disturbed."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from catalogue.profile import Profile
from engine.errors import GenerationFailed, OutOfMemory
from engine.partial_forwards.step_cache import StepCache
from engine.self_test.measurement import MIN_ROUNDS, Measurement, model_digest, profile_key
from tests.unit.engine.fakes import (
    Costly,
    CostlyWalk,
    FakeCachingModel,
    FakeDenoiser,
    FakeModel,
    FakeWalk,
    SetClock,
)


def costly(clock: SetClock, step_seconds: Callable[[int], float], max_rows: int = 1000) -> FakeModel:
    """Advances a clock: by rows for a forward pass, by a fixed time for each text and each decoding."""
    model = FakeModel(denoiser=Costly(clock, step_seconds), max_rows=max_rows)
    model.text_encoder.on_encode = lambda _: clock.advance(0.125)
    model.vae.on_decode = lambda: clock.advance(0.5)
    return model


def costly_caching(clock: SetClock, cached_share: float = 0.25) -> FakeCachingModel:
    """A full step takes one second per row, a cached step a share of that."""
    denoiser = Costly(clock, float)
    model = FakeCachingModel(denoiser=denoiser)
    model.partial_forward = CostlyWalk(denoiser, cached_share)
    return model


def measure(
    step_seconds: Callable[[int], float], *, rows: int = 16, seconds: float = 0, max_rows: int = 1000
) -> tuple[Profile, FakeModel]:
    clock = SetClock()
    model = costly(clock, step_seconds, max_rows)
    measurement = Measurement(model, width=64, height=64, clock=clock)
    return measurement.profile(rows, seconds=seconds, device_name="an abacus"), model


def test_every_bucket_gets_the_seconds_that_it_takes() -> None:
    profile, _ = measure(lambda rows: 1 + rows / 8)
    assert {step.num_rows: step.seconds for step in profile.steps} == pytest.approx(
        {4: 1.5, 8: 2.0, 12: 2.5, 16: 3.0}
    )
    assert (profile.encode_seconds, profile.decode_seconds) == (0.25, 0.5)
    assert profile.num_guided_rows == 2
    assert profile.steps[0].peak_memory_bytes is None
    assert profile.key.device_kind.startswith("an abacus, ")


def test_cached_steps_are_measured_if_the_model_has_them() -> None:
    profile, _ = measure(lambda rows: 1 + rows / 8)
    assert profile.cached_share == 1
    clock = SetClock()
    model = costly_caching(clock)
    measured = Measurement(model, width=64, height=64, clock=clock).profile(8, seconds=0, device_name="x")
    assert [step.seconds for step in measured.steps] == pytest.approx([4.0, 8.0])
    assert measured.cached_share == pytest.approx(0.25)


def test_a_cached_step_that_saves_nothing_counts_as_a_full_one() -> None:
    clock = SetClock()
    model = costly_caching(clock, cached_share=1.5)
    measured = Measurement(model, width=64, height=64, clock=clock).profile(4, seconds=0, device_name="x")
    assert measured.cached_share == 1


def test_a_cap_between_two_buckets_is_measured_at_the_bucket_that_holds_it() -> None:
    profile, model = measure(lambda _: 1.0, rows=6)
    assert [step.num_rows for step in profile.steps] == [4, 8]
    assert set(model.step_sizes) == {4, 8}


def test_each_round_measures_every_bucket_so_that_a_slower_machine_slows_all() -> None:
    _, model = measure(lambda _: 1.0, rows=12)
    image_to_decode = [4, 4]  # drawn in each round
    assert model.step_sizes == [4, 8, 12, *image_to_decode] * (MIN_ROUNDS + 1)


def test_the_first_pass_and_one_slow_round_change_no_median() -> None:
    calls: list[int] = []

    def slow_at_times(rows: int) -> float:
        calls.append(rows)
        return 100.0 if len(calls) <= 3 or calls.count(rows) == 4 else float(rows)

    profile, _ = measure(slow_at_times, rows=12)
    assert {step.num_rows: step.seconds for step in profile.steps} == pytest.approx({4: 4, 8: 8, 12: 12})
    assert [step.high_seconds for step in profile.steps] == pytest.approx([100] * 3)
    assert [step.low_seconds for step in profile.steps] == pytest.approx([4, 8, 12])


def test_measuring_lasts_for_the_given_seconds() -> None:
    _, model = measure(lambda _: 1.0, rows=4, seconds=100)
    rounds = len(model.step_sizes) // 3 - 1
    assert rounds > 20  # of 1 s for the step, 0.25 s for encoding, 2.75 s for an image and its decoding
    assert rounds * 4 == pytest.approx(100, rel=0.1)


def test_a_bucket_that_does_not_fit_ends_the_table_and_is_named() -> None:
    profile, _ = measure(lambda _: 1.0, max_rows=8)
    assert [step.num_rows for step in profile.steps] == [4, 8]
    assert profile.out_of_memory_rows == 12


class CrampedWalk(FakeWalk):
    """Has memory for a step's rows and a number of bytes of features, cached ones and its own."""

    def __init__(self, denoiser: FakeDenoiser, max_features_bytes: int) -> None:
        super().__init__(denoiser)
        self.max_features_bytes = max_features_bytes

    def predict(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        num_full_rows: int,
        features: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        output, new = super().predict(sample, timestep, encoder_hidden_states, num_full_rows, features)
        caches = [one for one in gc.get_objects() if type(one) is StepCache]
        new_bytes = new.numel() * new.element_size()
        if sum(cache.num_bytes for cache in caches) + new_bytes > self.max_features_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return output, new


def test_a_bucket_fits_only_if_as_many_paused_rows_can_keep_their_features() -> None:
    row_bytes = 4 * 8 * 8 * 4
    # Each pass searches all objects: hide those that other tests left.
    gc.collect()
    gc.freeze()
    for num_rows_kept, fitting in ((24, [4, 8, 12]), (23, [4, 8]), (16, [4, 8]), (15, [4])):
        clock = SetClock()
        model = FakeCachingModel(denoiser=Costly(clock, lambda _: 1.0))
        model.partial_forward = CrampedWalk(model.fake, num_rows_kept * row_bytes)
        measurement = Measurement(model, width=64, height=64, clock=clock)
        profile = measurement.profile(12, seconds=0, device_name="an abacus")
        assert [step.num_rows for step in profile.steps] == fitting


def test_a_model_that_does_not_fit_at_all_raises_out_of_memory() -> None:
    with pytest.raises(OutOfMemory):
        measure(lambda _: 1.0, max_rows=3)


def test_the_error_of_a_model_that_fails_is_raised() -> None:
    def fail(_: int) -> float:
        raise ValueError("a bad kernel")

    with pytest.raises(GenerationFailed, match="a bad kernel"):
        measure(fail)


class WithWeights(FakeDenoiser):
    def __init__(self, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.part = torch.nn.Linear(4, width, dtype=dtype)


def with_weights(width: int, dtype: torch.dtype = torch.float32) -> FakeModel:
    return FakeModel(denoiser=WithWeights(width, dtype))


def test_weights_of_the_same_shape_have_the_same_digest_and_others_do_not() -> None:
    torch.manual_seed(1)
    first, again = with_weights(4), with_weights(4)
    assert not torch.equal(*(one.fake.get_parameter("part.weight") for one in (first, again)))
    assert model_digest(first) == model_digest(again)
    digests = {model_digest(one) for one in (first, with_weights(8), with_weights(4, torch.bfloat16))}
    assert len(digests) == 3


# torch 2.13 itself uses what it deprecates, when dynamo is first imported.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_another_way_of_running_has_another_digest() -> None:
    plain, compiled, tiled = (with_weights(4) for _ in range(3))
    compiled.fake.get_submodule("part").compile()
    tiled.vae.use_tiling = True  # type: ignore[assignment]
    assert len({model_digest(one) for one in (plain, compiled, tiled)}) == 3


def test_the_key_names_threads_torch_and_size() -> None:
    key = profile_key(FakeModel(), 64, 32, "an abacus")
    assert (key.num_threads, key.torch_version) == (torch.get_num_threads(), torch.__version__)
    assert (key.width, key.height, key.dtype, key.device_name) == (64, 32, "float32", "an abacus")
