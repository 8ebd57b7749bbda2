"""What an engine has seen of costs is what its clock said, by size and bucket, and silent about the rest."""

import pytest

from engine.engine import Engine
from engine.policy.policy import BatchKey
from engine.policy.seen_costs import MIN_SEEN, NUM_KEPT, Costs, SeenCosts
from engine.request import GenerationRequest
from tests.unit.engine.fakes import Costly, CostlyWalk, FakeCachingModel, SetClock

SMALL, LARGE = BatchKey("m", 8, 8), BatchKey("m", 16, 16)


def seen(*steps: tuple[BatchKey, int, float]) -> SeenCosts:
    """`steps` are keys, rows and seconds, each often enough to count; decoding takes 3 s at any size."""
    costs = SeenCosts()
    for key, num_rows, seconds in steps:
        costs.saw_decoding(key, 3.0)
        for _ in range(MIN_SEEN):
            costs.saw_step(key, num_rows, seconds)
    return costs


def known(costs: SeenCosts, most: int = 1000, least: int = 0) -> Costs:
    found = costs.costs("m", least, most)
    assert found is not None
    return found


def test_costs_are_medians_by_bucket_for_each_latent_pixel() -> None:
    costs = seen((SMALL, 4, 64.0), (SMALL, 8, 128.0))
    costs.saw_step(SMALL, 4, 1e6)
    assert known(costs).step_seconds == {4: 1.0, 8: 2.0}
    assert known(costs).decode_seconds == 3 / 64
    assert known(costs).cached_share == 1


def test_the_largest_size_that_ran_a_bucket_speaks_for_it() -> None:
    costs = seen((SMALL, 4, 64.0), (SMALL, 8, 128.0), (LARGE, 4, 512.0))
    assert known(costs).step_seconds == {4: 2.0, 8: 2.0}
    assert known(costs).decode_seconds == 3 / 256
    assert known(costs, most=64).step_seconds == {4: 1.0, 8: 2.0}
    assert known(costs, least=65).step_seconds == {4: 2.0}


def test_too_little_says_nothing() -> None:
    costs = SeenCosts()
    assert costs.costs("m", 0, 1000) is None
    for _ in range(MIN_SEEN - 1):
        costs.saw_step(SMALL, 4, 1.0)
    costs.saw_decoding(SMALL, 1.0)
    assert costs.costs("m", 0, 1000) is None
    costs.saw_step(SMALL, 4, 1.0)
    assert known(costs).step_seconds == {4: 1 / 64}
    assert costs.costs("other", 0, 1000) is None
    assert costs.costs("m", 65, 1000) is None


def test_no_image_yet_says_nothing() -> None:
    costs = SeenCosts()
    for _ in range(MIN_SEEN):
        costs.saw_step(SMALL, 4, 1.0)
    assert costs.costs("m", 0, 1000) is None


def test_what_is_long_ago_is_forgotten() -> None:
    costs = seen((SMALL, 4, 64.0))
    for _ in range(NUM_KEPT):
        costs.saw_step(SMALL, 4, 6.4)
    assert known(costs).step_seconds == {4: pytest.approx(0.1)}


def costly(clock: SetClock) -> FakeCachingModel:
    """Takes time on a clock: a second for each row of a forward pass, a tenth of it for a cached one."""
    denoiser = Costly(clock, float)
    model = FakeCachingModel(denoiser=denoiser)
    model.partial_forward = CostlyWalk(denoiser, cached_share=0.1)
    model.text_encoder.on_encode = lambda _: clock.advance(0.25)
    model.vae.on_decode = lambda: clock.advance(0.5)
    return model


def drawn(*requests: GenerationRequest) -> SeenCosts:
    clock = SetClock()
    engine = Engine({"m": costly(clock)}, {"m": {4096: 16}}, clock=clock)
    handles = [engine.submit(request) for request in requests]
    while not engine.is_idle:
        engine.tick()
    assert all(handle.future.result().num_steps for handle in handles)
    return engine.seen_costs


def wanted(**changes: object) -> GenerationRequest:
    fields = {"prompt": "a", "width": 64, "height": 64, "num_inference_steps": 20, "guidance_scale": 4.0}
    return GenerationRequest("m", **{**fields, "seed": 1, **changes})  # type: ignore[arg-type]


def test_an_engine_sees_what_its_steps_and_its_ends_take() -> None:
    found = known(drawn(*[wanted(seed=seed, account=str(seed)) for seed in range(3)]))
    assert found.step_seconds[8] == pytest.approx(8 / 64)
    assert found.decode_seconds == pytest.approx(0.5 / 64)
    assert found.encode_seconds == pytest.approx(0.5, abs=0.25)
    assert found.cached_share == 1


def test_an_engine_sees_what_cached_steps_take_and_keeps_mixed_ones_out() -> None:
    both = known(drawn(wanted(), wanted(step_cache=3), wanted(step_cache=3, seed=2)))
    assert set(both.step_seconds) == {8}, "three guided generations always step together"
    assert both.step_seconds[8] == pytest.approx(8 / 64), "mixed steps are cheaper and do not count"
    lone = known(drawn(wanted(step_cache=3)))
    assert lone.step_seconds == {4: pytest.approx(4 / 64)}
    assert lone.cached_share == pytest.approx(0.1)
