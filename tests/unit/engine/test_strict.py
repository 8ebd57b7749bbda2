"""A strict request has the bytes of its run alone at every determinism level, or is refused."""

from collections.abc import Callable

import pytest

from catalogue.determinism import DeterminismLevel
from engine.engine import Engine
from engine.errors import StrictUnavailable
from engine.request import GenerationRequest, SchedulerSpec
from engine.self_test.self_test import Offer, find_determinism
from engine.self_test.time_budget import TimeBudget
from tests.unit.engine.fakes import FakeModel, NeighbourDependent, SizeDependent

Ask = Callable[..., GenerationRequest]
LIMITS = {64 * 64: 16}


def mixed(ask: Ask) -> list[GenerationRequest]:
    """Strict and other requests at mixed steps, scales, cutoffs and samplers."""
    return [
        ask(
            seed=seed,
            strict=seed % 2 == 0,
            num_inference_steps=2 + seed % 4,
            guidance_scale=1.0 + seed % 3,
            guidance_cutoff=(1.0, 0.5)[seed % 5 == 0],
            scheduler=SchedulerSpec("ddim", eta=0.5) if seed % 4 < 2 else SchedulerSpec("euler"),
        )
        for seed in range(12)
    ]


def drawn(model: FakeModel, determinism: DeterminismLevel, requests: list[GenerationRequest]) -> list[bytes]:
    """Each joins one tick after the previous one."""
    engine = Engine({"fake": model}, {"fake": LIMITS}, determinism=determinism)
    handles = []
    for request in requests:
        handles.append(engine.submit(request))
        engine.tick()
    while not engine.is_idle:
        engine.tick()
    return [handle.future.result(timeout=0).pixels.tobytes() for handle in handles]


@pytest.mark.parametrize(
    ("model", "determinism"),
    [
        (FakeModel(), "exact"),
        (FakeModel(denoiser=SizeDependent(difference=1e-4)), "exact within a bucket"),
        (FakeModel(denoiser=NeighbourDependent(difference=1e-5)), "within 1/255"),
    ],
)
def test_strict_image_equals_its_run_alone_at_every_determinism_level(
    model: FakeModel, determinism: DeterminismLevel, ask: Ask
) -> None:
    assert find_determinism(model, LIMITS, Offer(), TimeBudget()).determinism == determinism
    requests = mixed(ask)
    together = drawn(model, determinism, requests)
    alone = [drawn(model, determinism, [request.changed(strict=False)])[0] for request in requests]
    differ = [request for request, a, b in zip(requests, together, alone, strict=True) if a != b]
    assert not [request for request in differ if request.parameters.strict]
    assert bool(differ) == (determinism != "exact"), "the others show that this device would have differed"


def test_strict_is_refused_where_the_device_does_not_repeat_itself(model: FakeModel, ask: Ask) -> None:
    engine = Engine({"fake": model}, {"fake": LIMITS}, determinism="not repeatable")
    with pytest.raises(StrictUnavailable, match="strict"):
        engine.submit(ask(strict=True))
    assert engine.is_idle
    assert StrictUnavailable.retryable, "another kind of device may keep it"
    engine.submit(ask())


@pytest.mark.parametrize(("determinism", "num_passes"), [("exact within a bucket", 8), ("within 1/255", 32)])
def test_strict_generations_share_only_what_their_determinism_level_allows(
    model: FakeModel, ask: Ask, determinism: DeterminismLevel, num_passes: int
) -> None:
    drawn(model, determinism, [ask(seed=seed, strict=True) for seed in range(8)])
    assert set(model.step_sizes) == {4}
    assert len(model.step_sizes) >= num_passes
