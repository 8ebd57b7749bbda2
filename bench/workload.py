"""The fixed work of the engine's benchmark: its requests and their arrival times. It runs nothing."""

import itertools
import random
from dataclasses import dataclass

from engine.request import GenerationRequest
from tiny.scenes import draw_scene

STEPS = (4, 12, 20, 30, 50)
SHARES = (20, 20, 30, 20, 10)
GUIDANCE_SCALES = (1.0, 4.0)
MODEL = "tiny"


@dataclass(frozen=True)
class DueRequest:
    """A request and its arrival time, in seconds from the start."""

    request: GenerationRequest
    seconds: float


def mixed_requests(count: int, side: int, seed: int) -> list[GenerationRequest]:
    """Steps 4/12/20/30/50 at 20/20/30/20/10 %, guidance 1 and 4 half each, captions of mixed length."""
    rng = random.Random(seed)
    return [
        GenerationRequest(
            model=MODEL,
            prompt=draw_scene(rng, pairs=0.5).caption(),
            width=side,
            height=side,
            num_inference_steps=rng.choices(STEPS, SHARES)[0],
            guidance_scale=rng.choice(GUIDANCE_SCALES),
            seed=rng.randrange(2**32),
        )
        for _ in range(count)
    ]


def num_row_steps(request: GenerationRequest) -> int:
    """Return the number of rows of forward passes that a request needs in total."""
    return request.num_inference_steps * (2 if request.guidance_scale > 1 else 1)


def num_texts(request: GenerationRequest) -> int:
    """Return the number of texts that its pipeline encodes; guidance adds the negative prompt."""
    return 2 if request.guidance_scale > 1 else 1


def poisson(requests: list[GenerationRequest], rate: float, seed: int) -> list[DueRequest]:
    """Return the requests, arriving at `rate` a second in an open loop.

    The gaps are scaled so that exactly these arrivals have this rate; a hundred random gaps would miss it by
    a tenth.
    """
    rng = random.Random(seed)
    instants = list(itertools.accumulate(rng.expovariate(1.0) for _ in requests))
    scale = len(requests) / (rate * instants[-1])
    return [DueRequest(request, instant * scale) for request, instant in zip(requests, instants, strict=True)]
