"""An image depends on its parameters and its seed, never on other batch members: equal bytes in any batch."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.engine import Engine
from engine.errors import Canceled
from engine.generation import Handle
from engine.partial_forwards.step_cache import StepCache
from engine.request import GenerationRequest, SchedulerSpec
from tests.integration.engine.conftest import load
from tests.integration.engine.reference import MODELS

# diffusers' Euler scheduler calls numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SPECS = [
    SchedulerSpec("ddim"),
    SchedulerSpec("ddim", eta=0.5),
    SchedulerSpec("euler"),
    SchedulerSpec("euler", karras=True),
    SchedulerSpec("euler_ancestral"),
    SchedulerSpec("dpmpp_2m"),
    SchedulerSpec("dpmpp_2m", karras=True),
    SchedulerSpec("lcm"),
]
SIZES = [(64, 64), (64, 64), (64, 64), (128, 72)]
PROMPTS = ["", "a red heart", "a large blue star on a yellow background", "a green ring below a cross " * 6]


@pytest.fixture(scope="module")
def still_engine(folders: dict[str, Path]) -> Iterator[Engine]:
    """An engine whose ticks the test calls, so that joins and cancels happen where the seed says."""
    before = torch.get_num_threads()
    small = {128 * 72: 12}
    # No test asks the second model for larger images, so its self-test does not draw them.
    yield load(folders, 1, {**small, 128 * 128: 16}, limits_of={MODELS[1]: small})
    torch.set_num_threads(before)


def random_request(rng: random.Random) -> GenerationRequest:
    width, height = rng.choice(SIZES)
    return GenerationRequest(
        model=MODELS[0] if rng.random() < 0.8 else MODELS[1],
        prompt=rng.choice(PROMPTS),
        negative_prompt=rng.choice(PROMPTS[:2]),
        width=width,
        height=height,
        num_inference_steps=rng.randint(1, 8),
        guidance_scale=rng.choice([1.0, 1.5, 4.0, 7.5]),
        guidance_cutoff=rng.choice([1.0, 1.0, 0.5]),
        step_cache=rng.choice([1, 1, 2, 3]),
        scheduler=rng.choice(SPECS),
        seed=rng.randrange(2**63),
        lane=rng.choice(["interactive", "bulk"]),
        strict=rng.random() < 0.2,
    )


def alone(engine: Engine, request: GenerationRequest) -> bytes:
    handle = engine.submit(request)
    while not handle.future.done():
        engine.tick()
    return handle.future.result().pixels.tobytes()


@pytest.mark.parametrize("seed", range(4))
def test_bytes_do_not_depend_on_random_neighbours(still_engine: Engine, seed: int) -> None:
    """Requests join at random ticks and some are canceled: each that stays has the bytes of its run alone."""
    models = still_engine._models
    # Bulk generations join whatever it costs interactive ones: the more of them share, the more is tried.
    engine = Engine(
        models.by_name, models.row_limits, determinism=still_engine.determinism, bulk_slowdown=100.0
    )
    assert engine.determinism == "exact"
    rng = random.Random(seed)
    requests = [random_request(rng) for _ in range(12)]
    joins = [rng.randint(0, 8) for _ in requests]
    cancels = {index: rng.randint(1, 10) for index in range(len(requests)) if rng.random() < 0.2}
    handles: dict[int, Handle] = {}
    for tick in range(1000):
        for index, request in enumerate(requests):
            if joins[index] == tick:
                handles[index] = engine.submit(request)
            if cancels.get(index) == tick and index in handles:
                handles[index].cancel()
        engine.tick()
        if len(handles) == len(requests) and engine.is_idle:
            break
    errors = {index: handle.future.exception(timeout=0) for index, handle in handles.items()}
    assert all(error is None or isinstance(error, Canceled) for error in errors.values())
    images = {index: handles[index].future.result() for index, error in errors.items() if error is None}
    assert len(images) >= 6
    assert sum(image.mean_step_batch for image in images.values()) / len(images) > 1.5
    for index, image in images.items():
        assert image.pixels.tobytes() == alone(engine, requests[index]), requests[index]


def test_caches_and_cutoffs_side_by_side_leave_every_image_its_bytes(still_engine: Engine) -> None:
    """All at one size, so that one forward pass has full rows and cached ones."""
    engine = still_engine
    rng = random.Random(9)
    plain = random_request(rng).changed(
        model=MODELS[0], width=64, height=64, guidance_scale=4.0, strict=False
    )
    requests = [
        replace(
            plain,
            prompt=rng.choice(PROMPTS),
            seed=seed,
            num_inference_steps=rng.randint(4, 10),
            step_cache=1 + seed % 4,
            guidance_cutoff=rng.choice([1.0, 0.6, 0.3]),
        )
        for seed in range(10)
    ]
    handles = []
    for one in requests:
        handles.append(engine.submit(one))
        engine.tick()
    while not engine.is_idle:
        engine.tick()
    images = [handle.future.result() for handle in handles]
    assert sum(image.mean_step_batch for image in images) / len(images) > 3
    for one, image in zip(requests, images, strict=True):
        assert image.pixels.tobytes() == alone(engine, one), one
        cached = image.pixels.tobytes() != alone(engine, replace(one, step_cache=1))
        assert cached == has_cached_step(one), "a cache without effect proves nothing"


def has_cached_step(request: GenerationRequest) -> bool:
    cache = StepCache(request.step_cache, request.num_inference_steps)
    return not all(map(cache.is_full, range(request.num_inference_steps)))


def test_full_step_batches_at_the_tier_size_are_exact(still_engine: Engine) -> None:
    """Sixteen rows are allowed; if this machine's kernels round differently there, fewer are run."""
    models = still_engine._models
    # Its clock does not move: on a busy machine encoding would use up its share of a step.
    engine = Engine(
        models.by_name, models.row_limits, determinism=still_engine.determinism, clock=lambda: 0.0
    )
    request = GenerationRequest(
        model=MODELS[0],
        prompt="a red heart",
        width=128,
        height=128,
        num_inference_steps=3,
        guidance_scale=4.0,
        seed=5,
        account="one, so that the prompt is encoded once and all join at once",
    )
    others = [replace(request, seed=seed, num_inference_steps=2 + seed % 3) for seed in range(6, 14)]
    handles = [engine.submit(one) for one in [request, *others]]
    while not engine.is_idle:
        engine.tick()
    assert handles[0].future.result().mean_step_batch >= 4
    assert handles[0].future.result().pixels.tobytes() == alone(engine, request)


def test_two_threads_are_as_exact_as_one(folders: dict[str, Path]) -> None:
    """Kernels are chosen by thread count too. Few steps, since threads on busy cores are slow."""
    before = torch.get_num_threads()
    try:
        engine = load({MODELS[0]: folders[MODELS[0]]}, 2, {64 * 64: 8})
        assert engine.determinism == "exact"
        rng = random.Random(1)
        requests = [
            replace(random_request(rng), model=MODELS[0], width=64, height=64, num_inference_steps=steps)
            for steps in (1, 2, 3)
        ]
        handles = [engine.submit(request) for request in requests]
        while not engine.is_idle:
            engine.tick()
        for request, handle in zip(requests, handles, strict=True):
            assert handle.future.result().pixels.tobytes() == alone(engine, request)
    finally:
        torch.set_num_threads(before)


def test_kept_embeddings_change_no_byte(still_engine: Engine) -> None:
    """The same prompt from its account, from another and from none gives the same image."""
    request = GenerationRequest(
        model=MODELS[0],
        prompt="a green ring",
        negative_prompt="a blue star",
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=4.0,
        seed=9,
    )
    accounts = ["", "alice", "alice", "bob", "alice"]
    images = {alone(still_engine, replace(request, account=account)) for account in accounts}
    assert len(images) == 1
