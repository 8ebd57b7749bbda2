"""Which steps are cached, what a step cache holds meanwhile, and how its rows share a forward pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from engine.engine import Engine
from engine.errors import RequestInvalid
from engine.partial_forwards.step_cache import StepCache
from engine.policy.buckets import Buckets
from engine.request import GenerationRequest
from engine.self_test.self_test import Offer, SelfTest, find_determinism
from engine.self_test.time_budget import TimeBudget
from tests.unit.engine.fakes import FakeCachingModel, FakeModel, FakeWalk, SetClock

Ask = Callable[..., GenerationRequest]


@pytest.fixture
def caching_model() -> FakeCachingModel:
    return FakeCachingModel()


@pytest.fixture
def caching_engine(caching_model: FakeCachingModel, clock: SetClock) -> Engine:
    return Engine({"fake": caching_model}, {"fake": {64 * 64: 16}}, determinism="exact", clock=clock)


def full_steps(interval: int, num_steps: int) -> list[int]:
    return list(filter(StepCache(interval, num_steps).is_full, range(num_steps)))


def test_every_interval_the_first_four_and_the_last_step_are_full() -> None:
    assert full_steps(1, 5) == [0, 1, 2, 3, 4]
    assert full_steps(2, 10) == [0, 1, 2, 3, 4, 6, 8, 9]
    assert full_steps(3, 12) == [0, 1, 2, 3, 6, 9, 11]
    assert full_steps(8, 6) == [0, 1, 2, 3, 5]
    for num_steps in range(1, 6):
        assert full_steps(8, num_steps) == list(range(num_steps))


def test_features_are_held_from_a_full_step_until_the_next_and_only_while_their_row_lives() -> None:
    cache = StepCache(3, 12)
    batch = torch.zeros(4, 2, 3)
    cache.keep(batch[1:2], is_negative=False)
    cache.keep(batch[2:3], is_negative=True)
    assert cache.num_bytes == 2 * 6 * 4, "one row each, not the storage of the whole step batch"
    cache.drop_unneeded(4, is_guided=True)
    assert cache.num_bytes == 2 * 6 * 4
    cache.drop_unneeded(5, is_guided=False)
    assert cache.num_bytes == 6 * 4
    cache.drop_unneeded(6, is_guided=False)
    assert cache.num_bytes == 0
    cache.keep(batch[:1], is_negative=False)
    cache.drop_unneeded(12, is_guided=False)
    assert cache.num_bytes == 0


def test_only_full_rows_enter_the_inner_blocks_and_only_bucket_sizes_are_run(
    caching_engine: Engine, caching_model: FakeCachingModel, ask: Ask
) -> None:
    """Two guided generations have four rows; the second joins a step later, so their full steps differ."""
    first = caching_engine.submit(ask(seed=1, num_inference_steps=7, guidance_scale=4.0, step_cache=3))
    caching_engine.tick()
    second = caching_engine.submit(
        ask(seed=2, num_inference_steps=7, guidance_scale=4.0, guidance_cutoff=0.5, step_cache=3)
    )
    while not caching_engine.is_idle:
        caching_engine.tick()
    assert first.future.result().num_steps == second.future.result().num_steps == 7
    assert caching_model.inner_sizes == [4, 4, 4, 4, 4, 0, 4, 4]
    assert set(caching_model.step_sizes) == {4}


def test_the_inner_blocks_run_at_bucket_sizes_and_not_at_all_without_full_rows(
    caching_engine: Engine, caching_model: FakeCachingModel, ask: Ask
) -> None:
    caching_model.buckets = {(8, 8): Buckets((2, 3, 5, 6))}
    for seed in range(4):
        caching_engine.submit(ask(seed=seed, num_inference_steps=9, step_cache=2 + seed % 2))
    while not caching_engine.is_idle:
        caching_engine.tick()
    # From the fifth step on: full for interval 2, for none, for both, for none, and the last one.
    assert caching_model.step_sizes == [5] * 9
    assert caching_model.inner_sizes == [5, 5, 5, 5, 2, 0, 5, 0, 5]


def test_rows_without_a_cache_share_the_pass_with_cached_ones_and_change_nothing(
    caching_engine: Engine, ask: Ask
) -> None:
    requests = [ask(seed=i, num_inference_steps=3 + i, guidance_scale=1.0 + i % 2, step_cache=1 + i % 3)
                for i in range(9)]  # fmt: skip
    handles = []
    for one in requests:
        handles.append(caching_engine.submit(one))
        caching_engine.tick()
    while not caching_engine.is_idle:
        caching_engine.tick()
    for one, handle in zip(requests, handles, strict=True):
        alone = caching_engine.submit(one)
        while not caching_engine.is_idle:
            caching_engine.tick()
        assert (handle.future.result().pixels == alone.future.result().pixels).all(), one


def test_what_running_generations_hold_is_counted_and_freed_with_them(
    caching_engine: Engine, ask: Ask
) -> None:
    handle = caching_engine.submit(ask(num_inference_steps=9, guidance_scale=4.0, step_cache=3))
    other = caching_engine.submit(ask(num_inference_steps=9))
    row_bytes = 4 * 8 * 8 * 4
    held = []
    for _ in range(7):
        caching_engine.tick()
        held.append(caching_engine.step_cache_bytes / row_bytes)
    assert held == [0, 0, 0, 2, 2, 0, 2]
    handle.cancel()
    caching_engine.tick()
    assert caching_engine.step_cache_bytes == 0
    while not caching_engine.is_idle:
        caching_engine.tick()
    assert other.future.result().num_steps == 9


def test_a_row_that_fails_in_a_full_step_leaves_its_cached_neighbours_as_they_are(
    caching_engine: Engine, ask: Ask
) -> None:
    good = ask(seed=3, num_inference_steps=8, step_cache=4)
    beside = caching_engine.submit(good)
    for _ in range(5):
        caching_engine.tick()
    bad = caching_engine.submit(ask("explode", num_inference_steps=6, step_cache=2))
    while not caching_engine.is_idle:
        caching_engine.tick()
    alone = caching_engine.submit(good)
    while not caching_engine.is_idle:
        caching_engine.tick()
    assert bad.future.exception() is not None
    assert (beside.future.result().pixels == alone.future.result().pixels).all()


def test_memory_that_ran_out_takes_no_features_from_those_that_need_them_again(
    caching_engine: Engine, caching_model: FakeCachingModel, ask: Ask
) -> None:
    """On a device with its own memory they wait in main memory. Not tested on a GPU."""
    requests = [ask(seed=seed, num_inference_steps=9, step_cache=4) for seed in range(6)]
    handles = [caching_engine.submit(one) for one in requests]
    while not caching_engine.step_cache_bytes:
        caching_engine.tick()
    caching_model.max_rows = 4
    while not caching_engine.is_idle:
        caching_engine.tick()
    assert max(caching_model.step_sizes[-8:]) == 4
    assert 8 in caching_model.step_sizes
    for one, handle in zip(requests, handles, strict=True):
        alone = caching_engine.submit(one)
        while not caching_engine.is_idle:
            caching_engine.tick()
        assert (handle.future.result().pixels == alone.future.result().pixels).all()


def test_a_generation_alone_is_tried_again_once_features_of_paused_ones_have_left_the_device(
    caching_engine: Engine, caching_model: FakeCachingModel, ask: Ask
) -> None:
    handle = caching_engine.submit(ask(num_inference_steps=5, step_cache=2))
    caching_engine.tick()

    def fill_memory() -> None:
        caching_model.on_predict = lambda: None
        raise torch.OutOfMemoryError("CUDA out of memory")

    caching_model.on_predict = fill_memory
    while not caching_engine.is_idle:
        caching_engine.tick()
    assert handle.future.result().num_steps == 5


def test_features_leave_a_devices_memory_for_main_memory() -> None:
    """Fake tensors, as torch's compiler uses them, can be on a device that does not exist."""
    cache = StepCache(3, 12)
    with FakeTensorMode():
        cache.keep(torch.empty(1, 8, device="cuda"), is_negative=False)
        assert cache.kept(is_negative=False).device.type == "cuda"
        cache.leave_device()
        assert cache.kept(is_negative=False).device.type == "cpu"
    assert cache.num_bytes == 8 * 4


def test_a_parameter_that_the_pipelines_call_has_not_is_refused_by_name(engine: Engine, ask: Ask) -> None:
    with pytest.raises(
        RequestInvalid, match=r"^pipeline_parameters/clip_skip: a FakePipeline has no such parameter$"
    ):
        engine.submit(ask(pipeline_parameters={"clip_skip": 2}))


def test_a_model_without_a_step_cache_refuses_it_by_name(engine: Engine, ask: Ask) -> None:
    with pytest.raises(RequestInvalid, match=r"^step_cache: 'fake' has no step cache; only 1 is accepted$"):
        engine.submit(ask(step_cache=2))


@pytest.mark.parametrize("interval", [0, -1, 9, 1.5, True])
def test_an_interval_outside_its_limits_is_refused(ask: Ask, interval: object) -> None:
    with pytest.raises(RequestInvalid, match=rf"^step_cache: {interval!r} is not in 1..8$"):
        ask(step_cache=interval)


def self_tested(model: FakeCachingModel) -> SelfTest:
    return find_determinism(model, {4096: 16}, Offer(), TimeBudget())


def test_whether_a_model_has_a_step_cache_is_found_by_drawing_with_one() -> None:
    """A supported denoiser may have a pipeline that is not; an unsupported denoiser is not tried."""

    class Refusing(FakeWalk):
        def predict(  # type: ignore[override]
            self,
            sample: Tensor,  # noqa: ARG002
            num_full_rows: int,  # noqa: ARG002
            features: Tensor | None,  # noqa: ARG002
        ) -> tuple[Tensor, Tensor]:
            raise AssertionError("it was not asked whether it takes all arguments")

    model, refusing, plain = FakeCachingModel(), FakeCachingModel(), FakeModel()
    refusing.partial_forward = Refusing(refusing.fake)
    for one in (model, refusing, plain):
        find_determinism(one, {4096: 16}, Offer(), TimeBudget())
    assert [one.can_cache_steps for one in (model, refusing, plain)] == [True, False, False]


class RoundingWalk(FakeWalk):
    """Rounds differently from the denoiser if `is_otherwise` says so for the output and features."""

    def __init__(self, model: FakeModel, is_otherwise: Callable[[Tensor, Tensor], bool]) -> None:
        super().__init__(model.fake)
        self.is_otherwise = is_otherwise

    def predict(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        num_full_rows: int,
        features: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        output, new = super().predict(sample, timestep, encoder_hidden_states, num_full_rows, features)
        return (output + 1e-6 if self.is_otherwise(output, new) else output), new


def test_a_full_step_that_rounds_differently_with_a_cache_leaves_the_weakest_level() -> None:
    otherwise = FakeCachingModel()
    otherwise.partial_forward = RoundingWalk(otherwise, lambda *_: True)
    assert self_tested(FakeCachingModel()).determinism == "exact"
    assert self_tested(otherwise).determinism == "within 1/255"


def test_a_cached_step_that_depends_on_the_bucket_lowers_the_cap() -> None:
    uneven = FakeCachingModel()
    uneven.partial_forward = RoundingWalk(uneven, lambda output, new: len(output) >= 16 and not len(new))
    assert self_tested(uneven).row_limits == {4096: 15}
