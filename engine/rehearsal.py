"""Images drawn alone and again in company, before an engine is trusted with a promise about their company.

The self-test compares forward passes; this compares what leaves the engine, so that samplers, guidance,
joins and whatever else runs between two forward passes are covered too. It knows requests, not tensors.
"""

from collections.abc import Mapping
from dataclasses import replace

from engine.engine import Engine
from engine.families.family import Family, can_cache_steps
from engine.handle import Handle
from engine.request import GenerationRequest, SchedulerSpec
from engine.sampling import schedulers_of
from engine.self_test import Promise
from engine.time_budget import TimeBudget

MIN_REQUESTS = 4  # their rows are more than a bucket


def is_exact_in_company(
    family: Family,
    row_limits: Mapping[int, int],
    budget: TimeBudget | None = None,
    *,
    promise: Promise = "exact",
) -> bool:
    """Whether every image of a small schedule has the bytes of its solo run, at the smallest tier.

    Requests of every scheduler that the model has, at mixed steps and scales, some with a step cache or a
    guidance cutoff; each joins a step later. Under a promise that only strict requests are given, all are.
    Not so either when the budget is spent before all are drawn.
    """
    budget = budget or TimeBudget()
    limits = {min(row_limits): row_limits[min(row_limits)]}
    requests = [replace(one, strict=promise != "exact") for one in _requests(family, min(row_limits))]
    together = _drawn(family, limits, requests, promise, budget)
    alone = [_drawn(family, limits, [request], promise, budget) for request in requests]
    return not budget.is_spent() and together == [outcome for outcomes in alone for outcome in outcomes]


def _requests(family: Family, max_pixels: int) -> list[GenerationRequest]:
    multiple = family.pixels_per_latent * family.latents_per_patch
    side = int(max_pixels**0.5) // multiple * multiple
    plain = GenerationRequest("rehearsed", "a rehearsal", side, side, 2, 4.0, seed=1)
    names = schedulers_of(family.scheduler, family.flow_sigmas)
    names *= -(-MIN_REQUESTS // len(names))
    return [
        replace(
            plain,
            scheduler=SchedulerSpec(name, eta=0.5 if name == "ddim" else 0.0),  # with noise, where it can be
            num_inference_steps=len(names) - index + 3,  # who joins later ends no later: they all meet
            guidance_scale=1.0 if index % 3 == 2 else 4.0,
            seed=index,
            step_cache=2 if index % 2 == 0 and can_cache_steps(family) else 1,
            guidance_cutoff=0.5 if index % 4 == 1 else 1.0,
        )
        for index, name in enumerate(names)
    ]


def _drawn(
    family: Family,
    row_limits: Mapping[int, int],
    requests: list[GenerationRequest],
    promise: Promise,
    budget: TimeBudget,
) -> list[bytes]:
    """The pixels of each, or the words of its error; the time being up is one."""
    # Its clock stands still: on a busy machine seconds would decide who meets whom, and fewer would meet.
    engine = Engine({"rehearsed": family}, {"rehearsed": row_limits}, promise=promise, clock=lambda: 0.0)
    handles: list[Handle] = []
    for request in requests:
        handles.append(engine.submit(request))
        if not budget.is_spent():
            engine.tick()
    while not (engine.is_idle or budget.is_spent()):
        engine.tick()
    engine.stop()
    return [_outcome(handle) for handle in handles]


def _outcome(handle: Handle) -> bytes:
    error = handle.future.exception(timeout=0)
    return handle.future.result().pixels.tobytes() if error is None else str(error).encode()
