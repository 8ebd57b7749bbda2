"""The self-test at start finds the determinism level of this machine, and refuses models that cannot draw."""

import functools
import weakref
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, LCMScheduler
from torch import Tensor

from catalogue.step_cache import NUM_FIRST_FULL_STEPS
from engine.errors import LoadError, RequestInvalid
from engine.loading.compilation import compile_sizes
from engine.pipelines.parked_call import ParkedCall
from engine.policy.buckets import MULTIPLES_OF_FOUR, at
from engine.request import GenerationRequest, SchedulerSpec, scheduler_named
from engine.self_test.exact_rows import exact_row_counts
from engine.self_test.first_image import check_image
from engine.self_test.self_test import Offer, SelfTest, find_determinism
from engine.self_test.time_budget import TimeBudget
from engine.self_test.trial_images import outcomes_of, plain_request
from tests.unit.engine.fakes import (
    Costly,
    FakeCachingModel,
    FakeDenoiser,
    FakeModel,
    FakePipeline,
    FakeTextEncoder,
    FakeVAE,
    NeighbourDependent,
    SetClock,
    SizeDependent,
)

Ask = Callable[..., GenerationRequest]
OWN = SchedulerSpec("default")


def find(model: FakeModel, limits: dict[int, int], budget: TimeBudget | None = None, **more: Any) -> SelfTest:
    return find_determinism(model, limits, more.pop("offer", Offer()), budget or TimeBudget(), **more)


class Wandering(FakeDenoiser):
    """Never returns the same numbers twice, like sums by atomic additions."""

    def predict(self, sample: Tensor, timestep: Tensor, marks: Tensor) -> Tensor:
        return super().predict(sample, timestep, marks) + 1e-4 * len(self.step_sizes)


class Odd(FakeDenoiser):
    """Rounds differently for odd row counts, as with a kernel of their own."""

    def predict(self, sample: Tensor, timestep: Tensor, marks: Tensor) -> Tensor:
        return super().predict(sample, timestep, marks) + 1e-6 * (len(sample) % 2)


class LeakingVAE(FakeVAE):
    """Its output depends on the size of the last step batch, which no forward pass shows."""

    denoiser: FakeDenoiser

    def decode(self, latents: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        (pixels,) = super().decode(latents, return_dict)
        return (pixels * (0.5 if self.denoiser.step_sizes[-1] > 4 else 1.0),)


def test_rows_that_never_change_are_exact() -> None:
    model = FakeModel()
    result = find(model, {4096: 16, 16384: 8})
    assert result.determinism == "exact"
    assert not model.runs_alone
    assert result.row_limits == {4096: 16, 16384: 8}
    assert result.buckets[8, 8].sizes == tuple(range(1, 17))
    assert result.buckets[16, 16].sizes == tuple(range(1, 9))
    assert model.buckets == result.buckets


def test_row_counts_that_differ_are_no_buckets() -> None:
    result = find(FakeModel(denoiser=Odd()), {4096: 12, 16384: 8})
    assert result.determinism == "exact"
    assert result.buckets[8, 8].sizes == (2, 4, 6, 8, 10, 12)
    assert at(result.buckets, 8, 8).rows(1) == 2
    assert at(result.buckets, 8, 12).rows(1) == 4, "a shape that was not tried"


def counts_tried(step_seconds: float, ask: Ask, *, is_compiled: bool = False) -> tuple[set[int], set[int]]:
    """Exact row counts up to 12 if a step takes `step_seconds`, and the counts that were tried."""
    clock = SetClock()
    model = FakeModel(denoiser=Costly(clock, lambda _: step_seconds))
    counts = exact_row_counts(model, [ask()], 12, TimeBudget(1e6, clock), is_compiled=is_compiled)
    assert counts is not None
    assert counts[1] == 12
    return counts[0], set(model.step_sizes) - {1}  # calls are advanced to later steps one at a time


def test_every_row_count_is_tried_if_a_step_is_fast(ask: Ask) -> None:
    assert counts_tried(0.4, ask) == (set(range(1, 13)), set(range(2, 13)))


def test_slow_model_is_tried_at_few_row_counts(ask: Ask) -> None:
    assert counts_tried(0.6, ask) == ({2, 4, 8, 12}, {2, 4, 8, 12})


def test_compiled_model_has_few_buckets_since_each_is_compiled(ask: Ask) -> None:
    assert counts_tried(0.0, ask, is_compiled=True) == ({2, 4, 8, 12}, {2, 4, 8, 12})
    assert find(FakeModel(), {4096: 12}, is_compiled=True).buckets[8, 8].sizes == (2, 4, 8, 12)


@pytest.mark.parametrize("difference", [1e-6, 1e-4])
@pytest.mark.parametrize(("from_rows", "max_rows", "cap"), [(16, 16, 15), (12, 16, 11), (8, 12, 7)])
def test_row_limit_is_lowered_below_large_row_counts_that_differ(
    from_rows: int, max_rows: int, cap: int, difference: float
) -> None:
    """Images that show the difference are drawn in a mixed batch again at the row counts that were found."""
    result = find(FakeModel(denoiser=SizeDependent(from_rows, difference)), {4096: max_rows})
    assert result.determinism == "exact"
    assert result.row_limits == {4096: cap}


def test_if_most_row_counts_differ_the_limit_stays_and_the_level_is_exact_within_a_bucket() -> None:
    result = find(FakeModel(denoiser=SizeDependent(from_rows=8)), {4096: 16})
    assert result.determinism == "exact within a bucket"
    assert result.row_limits == {4096: 16}
    assert result.buckets == {(8, 8): MULTIPLES_OF_FOUR}, "tried nonetheless"


@pytest.mark.parametrize("denoiser", [NeighbourDependent(difference=0.1), SizeDependent(difference=0.1)])
def test_a_model_whose_images_depend_on_batch_members_draws_one_at_a_time(denoiser: FakeDenoiser) -> None:
    """Its level is exact, since no images share a batch."""
    model = FakeModel(denoiser=denoiser)
    result = find(model, {4096: 16, 16384: 8})
    assert model.runs_alone
    assert result == SelfTest("exact", {4096: 16, 16384: 8}, {})
    assert model.buckets == {}


def test_small_effects_of_batch_members_lower_the_level_to_within_1_255() -> None:
    model = FakeModel(denoiser=NeighbourDependent(difference=1e-5))
    assert find(model, {4096: 8}).determinism == "within 1/255"
    assert not model.runs_alone


class Unshared(FakeModel):
    """A model whose calls never share a pass."""

    num_signatures = 0

    def signature_number(self, parked: ParkedCall, apart: Hashable = ()) -> int:  # noqa: ARG002
        self.num_signatures += 1
        return self.num_signatures


def test_requests_that_share_no_pass_lower_the_level_to_within_1_255() -> None:
    model = Unshared()
    assert find(model, {4096: 16}).determinism == "within 1/255"
    assert not model.runs_alone


def test_a_model_that_never_repeats_its_numbers_is_not_repeatable() -> None:
    assert find(FakeModel(denoiser=Wandering()), {4096: 8}).determinism == "not repeatable"


def test_effects_of_batch_members_outside_of_forward_passes_are_found() -> None:
    vae = LeakingVAE()
    model = FakeModel(vae=vae)
    vae.denoiser = model.fake
    find(model, {4096: 8})
    assert model.runs_alone


def test_a_model_of_few_steps_is_tried_with_at_most_its_steps() -> None:
    """Weights distilled for four steps, whose scheduler refuses a fifth."""
    scheduler = LCMScheduler(original_inference_steps=4, num_train_timesteps=1000)
    model = FakeModel(scheduler=scheduler)
    offer = Offer((SchedulerSpec("default"),), max_num_inference_steps=4)
    assert find(model, {4096: 8}, offer=offer).determinism == "exact"
    assert not model.runs_alone


def test_one_refused_request_does_not_fail_the_others() -> None:
    scheduler = LCMScheduler(original_inference_steps=4, num_train_timesteps=1000)
    model = FakeModel(scheduler=scheduler)
    outcomes = outcomes_of(
        model,
        {4096: 8},
        [
            plain_request(3, (64, 64), SchedulerSpec("default")),
            plain_request(1, (64, 64), SchedulerSpec("default")),
        ],
    )
    assert [isinstance(one, RequestInvalid) for one in outcomes] == [True, False]


def test_an_offered_parameter_that_the_model_cannot_draw_with_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class NoEta(FakePipeline):
        def stepped(self, latents: Tensor, prompt: str) -> Tensor:  # noqa: ARG002
            if self.eta:
                raise ValueError("no such noise")
            return latents

        def __call__(self, *args: Any, eta: float = 0.0, **asked: Any) -> Any:
            self.eta = eta
            return super().__call__(*args, **asked)

    NoEta.__call__ = functools.wraps(FakePipeline.__call__)(NoEta.__call__)  # type: ignore[method-assign]
    model: FakeModel = type("NoEtaModel", (FakeModel,), {"pipeline_class": NoEta})()
    offer = Offer(trial_values={"eta": 0.5})
    assert find(model, {4096: 8}, offer=offer).determinism == "exact"
    assert "cannot draw with eta 0.5" in caplog.text


def test_caps_below_the_smallest_bucket_stay() -> None:
    assert find(FakeModel(), {4096: 2}).row_limits == {4096: 2}
    assert torch.is_inference_mode_enabled() is False


class Kinds(FakePipeline):
    """Calls of one kind change their image, or fail, in passes that have rows of other calls."""

    kind: Callable[["Kinds"], bool] = staticmethod(lambda _: False)
    failure: Exception | None = None

    @functools.wraps(FakePipeline.__call__)
    def __call__(self, *args: Any, **asked: Any) -> Any:  # type: ignore[override]
        self.asked = asked
        return super().__call__(*args, **asked)

    def stepped(self, latents: Tensor, prompt: str) -> Tensor:  # noqa: ARG002
        num_rows = 2 if self._guidance_scale > 1 else 1
        if self.unet.step_sizes[-1] <= num_rows or not type(self).kind(self):
            return latents
        if self.failure is not None:
            raise self.failure
        return latents + 1


KINDS: dict[str, Callable[[Kinds], bool]] = {
    "another shape": lambda call: call.asked["width"] != call.asked["height"],
    "a cut-off guidance": lambda call: (
        call.asked["generator"].initial_seed() == 5
    ),  # the pipeline does not know
    "a second scheduler": lambda call: isinstance(call.scheduler, EulerDiscreteScheduler),
    "a declared parameter": lambda call: call.asked.get("eta") == 0.5,
    "a step cache": lambda call: call.asked["num_inference_steps"] == NUM_FIRST_FULL_STEPS + 3,
    "a scale above 1": lambda call: call.asked["guidance_scale"] > 1,
    "no guidance": lambda call: call.asked["guidance_scale"] == 1,
}
WIDE = Offer((OWN, scheduler_named("euler")), ((64, 32),), {"eta": 0.5})


def with_kind(kind: Callable[[Kinds], bool], failure: Exception | None = None) -> FakeCachingModel:
    pipeline = type("OneKind", (Kinds,), {"kind": staticmethod(kind), "failure": failure})
    model: FakeCachingModel = type("OneKindModel", (FakeCachingModel,), {"pipeline_class": pipeline})()
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_request_that_users_may_make_is_drawn_in_a_mixed_batch(kind: str) -> None:
    model = with_kind(KINDS[kind])
    assert find(model, {4096: 16}, offer=WIDE).determinism == "exact"
    assert model.runs_alone
    harmless = with_kind(lambda _: False)
    find(harmless, {4096: 16}, offer=WIDE)
    assert not harmless.runs_alone


def test_what_is_not_offered_is_not_drawn() -> None:
    for kind in ("another shape", "a second scheduler", "a declared parameter"):
        model = with_kind(KINDS[kind])
        find(model, {4096: 16})
        assert not model.runs_alone, kind


def test_a_shape_of_a_larger_tier_is_drawn_in_a_mixed_batch_too() -> None:
    model = with_kind(lambda call: call.asked["width"] == 128)
    find(model, {4096: 16, 16384: 8}, offer=replace(WIDE, sizes=((128, 64),)))
    assert model.runs_alone


def test_a_request_that_fails_only_in_a_mixed_batch_makes_the_model_run_alone() -> None:
    for kind in ("a scale above 1", "a cut-off guidance", "a declared parameter"):
        model = with_kind(KINDS[kind], ValueError("two rows, and one mask"))
        find(model, {4096: 16}, offer=WIDE)
        assert model.runs_alone, kind


def test_a_kind_of_request_that_cannot_be_drawn_at_all_is_left_out() -> None:
    model = FakeModel()
    result = find(model, {4096: 16}, offer=replace(WIDE, trial_values={"eta": "much"}))
    assert result.determinism == "exact"
    assert not model.runs_alone


class Holding(FakeDenoiser):
    """Records whether a tensor that did not fit was still alive when the next forward pass started."""

    lost: "weakref.ref[Tensor] | None" = None
    was_held = False

    def predict(self, sample: Tensor, timestep: Tensor, marks: Tensor) -> Tensor:
        if self.lost is not None:
            self.was_held |= self.lost() is not None
        if len(sample) > self.max_rows:
            self.lost = weakref.ref(sample)
        return super().predict(sample, timestep, marks)


@pytest.mark.parametrize(
    ("is_compiled", "cap", "sizes"), [(False, 10, tuple(range(1, 11))), (True, 8, (2, 4, 8))]
)
def test_cap_too_high_for_the_memory_is_lowered_to_what_fits(
    caplog: pytest.LogCaptureFixture, is_compiled: bool, cap: int, sizes: tuple[int, ...]
) -> None:
    denoiser = Holding()
    result = find(FakeModel(denoiser=denoiser, max_rows=10), {4096: 64, 16384: 8}, is_compiled=is_compiled)
    assert result.determinism == "exact"
    assert result.row_limits == {4096: cap, 16384: 8}
    assert result.buckets[8, 8].sizes == sizes
    assert denoiser.lost is not None
    assert not denoiser.was_held
    assert f"do not fit into memory, so step batches are limited to {cap} rows" in caplog.text


def test_cap_is_lowered_to_what_fits_where_large_step_batches_differ_too() -> None:
    result = find(FakeModel(denoiser=SizeDependent(from_rows=8), max_rows=20), {4096: 64})
    assert result.determinism == "exact within a bucket"
    assert result.row_limits == {4096: 20}


def test_model_whose_smallest_bucket_does_not_fit_draws_one_at_a_time() -> None:
    model = FakeModel(max_rows=3)
    assert find(model, {4096: 64}).determinism == "exact"
    assert model.runs_alone


def test_compiled_sizes_lower_the_row_limit_to_what_fits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = FakeModel(max_rows=10)
    limits = compile_sizes(model, [(64, 64), (32, 64), (128, 64)], {4096: 16, 16384: 8}, TimeBudget())
    assert limits == {4096: 8, 16384: 8}
    assert model.step_sizes == [4, 8, 12, 4, 8, 4, 8]
    assert "out_of_memory: 12 rows of 64x64 pixels do not fit" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        compile_sizes(FakeModel(max_rows=3), [(64, 64)], {4096: 16}, TimeBudget())


def slow(clock: SetClock, seconds: float = 10.0, **parts: Any) -> FakeModel:
    """A model whose forward passes each take `seconds`."""
    model = FakeModel(**parts)
    model.on_predict = lambda: clock.advance(seconds)
    return model


@pytest.mark.parametrize("seconds", [0.0, 400.0, 1000.0])
def test_a_spent_budget_lowers_the_level_and_keeps_every_row_limit(seconds: float) -> None:
    clock = SetClock()
    model = slow(clock, denoiser=SizeDependent(from_rows=16))
    budget = TimeBudget(seconds, clock)
    result = find(model, {4096: 16, 16384: 8}, budget)
    assert result == SelfTest("within 1/255", {4096: 16, 16384: 8}, {})
    assert not model.runs_alone
    assert budget.is_spent(), "the caller can see that the test was cut short"


@pytest.mark.parametrize(("difference", "runs_alone"), [(0.1, True), (0.0, False)])
def test_whether_a_model_runs_alone_is_known_on_any_budget(difference: float, runs_alone: bool) -> None:
    model = FakeModel(denoiser=NeighbourDependent(difference))
    result = find(model, {4096: 16, 16384: 8}, TimeBudget(0.0))
    assert model.runs_alone is runs_alone
    assert result.determinism == ("exact" if runs_alone else "within 1/255")


def test_a_model_that_never_repeats_its_numbers_is_found_on_any_budget() -> None:
    """Strict requests run alone at `within 1/255`, which is only true if numbers repeat."""
    model = FakeModel(denoiser=Wandering())
    assert find(model, {4096: 8}, TimeBudget(0.0)).determinism == "not repeatable"


def test_a_row_count_that_needs_more_than_the_remaining_budget_is_not_started(ask: Ask) -> None:
    clock = SetClock()
    model = slow(clock)
    assert exact_row_counts(model, [ask()], 16, TimeBudget(1e6, clock)) == ({2, 4, 8, 12, 16}, 16)
    taken = clock.now - 1000.0
    clock.now = 1000.0
    budget = TimeBudget(taken - 15.0, clock)  # only the last count is compared in two passes
    assert exact_row_counts(model, [ask()], 16, budget) is None
    assert clock.now < 1000.0 + taken - 15.0
    assert budget.is_spent()


def test_a_sufficient_budget_changes_nothing() -> None:
    clock = SetClock()
    limits = {4096: 16, 16384: 8}
    slowly = find(slow(clock, 0.01, denoiser=SizeDependent(from_rows=12)), limits, TimeBudget(1e6, clock))
    assert slowly == find(FakeModel(denoiser=SizeDependent(from_rows=12)), limits)


def test_how_often_prompts_are_encoded_does_not_depend_on_the_row_counts_tried() -> None:
    """A text encoder may be larger than the denoiser."""

    def num_encoded(max_rows: int) -> int:
        texts: list[str] = []
        model = FakeModel()
        model.text_encoder.on_encode = texts.append
        find(model, {64 * 64: max_rows})
        return len(texts)

    assert num_encoded(16) == num_encoded(32)


class Unsound(FakeDenoiser):
    def predict(self, sample: Tensor, timestep: Tensor, marks: Tensor) -> Tensor:
        return super().predict(sample, timestep, marks) * float("nan")


class UnsoundVAE(FakeVAE):
    def decode(self, latents: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (super().decode(latents, return_dict)[0] * float("nan"),)


class Failing(FakeTextEncoder):
    def forward(self, text: str) -> Tensor:
        raise RuntimeError(f"mat1 and mat2\nshapes: {len(text)}")


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"denoiser": Unsound()}, r"unet \(Unsound\) in float32 is not finite; its weights are"),
        ({"vae": UnsoundVAE()}, r"vae \(UnsoundVAE\) in float32 is not finite; its weights are"),
        (
            {"text_encoder": Failing()},
            r"text_encoder \(Failing\) fails \(RuntimeError: mat1 and mat2 shapes: 11\): the components do",
        ),
    ],
)
def test_a_model_that_draws_nothing_is_refused_by_the_name_of_the_component(
    parts: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(LoadError, match=rf"^it draws no image: .*its {complaint}"):
        check_image(FakeModel(**parts), {4096: 16}, scheduler=OWN, size=(64, 64), default_steps=4)


def test_an_error_of_a_vae_in_half_precision_names_the_dtype_to_set() -> None:
    vae = UnsoundVAE()
    vae.dtype = torch.float16
    with pytest.raises(
        LoadError, match=r"vae \(UnsoundVAE\) in float16 .* set force_upcast in the configuration of the vae$"
    ):
        check_image(FakeModel(vae=vae), {4096: 16}, scheduler=OWN, size=(64, 64), default_steps=4)


def test_the_image_of_a_sound_model_is_returned() -> None:
    image = check_image(FakeModel(), {4096: 16}, scheduler=OWN, size=(64, 32), default_steps=4)
    assert image.shape == (32, 64, 3)
    assert len(set(image.flatten().tolist())) > 50
