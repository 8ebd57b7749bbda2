"""The load on a service: the same requests for every arm, in an open loop or all at once.

Every file is decoded, and some are compared with what the bare pipeline draws, so that no arm is fast by
drawing something else. It does not know who draws.
"""

import io
import math
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from typing import Any

import numpy as np
from PIL import Image

from bench.latency import SLOWDOWN_LIMIT, Solo, p95, p95_latency, slowdowns
from bench.peers.service import NoImage, Service
from bench.strategies import Ended
from bench.workload import GUIDANCE_SCALES, SHARES, STEPS, DueRequest, mixed_requests, poisson
from engine.request import GenerationRequest

MAX_IN_FLIGHT = 256
ANSWER_SECONDS = 90.0
"""A request without an image after so long is a miss."""
COUNTED_SHARE = 0.75
"""The rate at saturation is counted at an end after this share: at the very last ones, workers are idle."""
DECK = 20
"""Requests in which each class of the mix has exactly its share."""
_TOLD = ("arm", "settings", "phase", "rate", "errors", "num_warm_up")
MAX_PIXEL_DIFFERENCE = 0.2
"""Of 255, on average over an image: batches of other sizes round differently. It is our engine's own bound
beside diffusers' pipeline (`tests/integration/engine/test_engine_equals_diffusers.py`)."""


@dataclass
class Run:
    """What a service did with one trace; its first `num_warm_up` requests count for no figure of latency."""

    arm: str
    settings: Mapping[str, Any]
    phase: str
    rate: float | None
    ended: Sequence[Ended]
    cpu_seconds: float
    errors: list[str] = field(default_factory=list)
    num_warm_up: int = 0

    @property
    def counted(self) -> Sequence[Ended]:
        """All but those of the warm-up, in which queues fill."""
        return self.ended[self.num_warm_up :]

    @property
    def throughput(self) -> float:
        """Images a second of a trace that was due all at once; 0 if too many have no image.

        It is the number of requests that have ended by some end, divided by the time of that end; of all ends
        after `COUNTED_SHARE` of the trace, the one where this is most. The answers of a batch come together,
        so that an end before its last answer would count less than was done.
        """
        ends = sorted(
            one.arrival.seconds + one.latency_seconds for one in self.ended if one.latency_seconds is not None
        )
        first = math.ceil(COUNTED_SHARE * len(self.ended))
        return max((number / end for number, end in enumerate(ends, 1) if number >= first), default=0.0)

    @property
    def num_lost(self) -> int:
        """Requests without an image, those of the warm-up too."""
        return sum(one.latency_seconds is None for one in self.ended)

    @property
    def p95_seconds(self) -> float:
        """The 95th percentile of latency; infinite if too many have no image."""
        return p95_latency(self.counted)

    def p95_slowdown(self, solo: Solo) -> float:
        """The 95th percentile of latency ÷ the bare pipeline's time alone."""
        return p95(slowdowns(self.counted, solo))

    def in_time(self, solo: Solo) -> float:
        """The share with an image within three times the bare pipeline's time alone."""
        return sum(one <= SLOWDOWN_LIMIT for one in slowdowns(self.counted, solo)) / len(self.counted)

    def as_json(self) -> dict[str, Any]:
        """With every request; a miss has no latency."""
        kinds = [one.arrival.request for one in self.ended]
        return {
            **{name: getattr(self, name) for name in _TOLD},
            "cpu_seconds": round(self.cpu_seconds, 3),
            "due_seconds": [round(one.arrival.seconds, 4) for one in self.ended],
            "latency_seconds": [one.latency_seconds and round(one.latency_seconds, 4) for one in self.ended],
            "num_inference_steps": [one.num_inference_steps for one in kinds],
            "guidance_scale": [one.guidance_scale for one in kinds],
        }


def joined(runs: Sequence[Run]) -> Run:
    """What counts of several runs of one arm, as one run."""
    first = runs[0]
    return replace(
        first,
        ended=[one for run in runs for one in run.counted],
        num_warm_up=0,
        cpu_seconds=sum(run.cpu_seconds for run in runs),
        errors=[error for run in runs for error in run.errors],
    )


def balanced_requests(count: int, side: int, seed: int) -> list[GenerationRequest]:
    """The mix of `bench.workload`, but each class has exactly its share in every twenty requests.

    So traces of other lengths and seeds hold the same work.
    """
    rng = random.Random(seed)
    deck = [
        (steps, scale)
        for steps, share in zip(STEPS, SHARES, strict=True)
        for scale in GUIDANCE_SCALES
        for _ in range(share * DECK // 100 // len(GUIDANCE_SCALES))
    ]
    classes: list[tuple[int, float]] = []
    while len(classes) < count:
        classes += rng.sample(deck, len(deck))
    return [
        replace(request, num_inference_steps=steps, guidance_scale=scale)
        for request, (steps, scale) in zip(mixed_requests(count, side, seed), classes, strict=False)
    ]


def at_once(requests: Sequence[GenerationRequest]) -> list[DueRequest]:
    """All are due now."""
    return [DueRequest(one, 0.0) for one in requests]


def due(count: int, rate: float, *, side: int, seed: int) -> list[DueRequest]:
    """Poisson arrivals of the balanced mix."""
    return poisson(balanced_requests(count, side, seed), rate, seed)


class Load:
    """Sends traces and checks the images; `references` are those of the bare pipeline."""

    def __init__(self, references: Mapping[GenerationRequest, bytes]) -> None:
        self._references = {request: _pixels(file) for request, file in references.items()}

    def run(
        self,
        service: Service,
        arrivals: Sequence[DueRequest],
        phase: str,
        *,
        rate: float | None = None,
        at: Mapping[int, Any] | None = None,
        answer_seconds: float = ANSWER_SECONDS,
        num_warm_up: int = 0,
    ) -> Run:
        """Send each request when it is due, whether or not earlier ones have ended; wait for all.

        `at` maps the number of a request to what is called when it is due.
        """
        before, begun_at = service.cpu_seconds(), time.monotonic()
        files: dict[int, bytes] = {}
        errors: list[str] = []
        lock = threading.Lock()

        def draw(number: int, arrival: DueRequest) -> Ended:
            left = begun_at + arrival.seconds + answer_seconds - time.monotonic()
            try:
                file = service.draw(arrival.request, seconds=left)
            except (NoImage, OSError, HTTPException) as error:
                with lock:
                    errors.append(f"{type(error).__name__}: {error}"[:300])
                return Ended(arrival, None)
            now = time.monotonic() - begun_at
            with lock:
                files[number] = file
            late = now - arrival.seconds > answer_seconds
            return Ended(arrival, None if late else now - arrival.seconds)

        with ThreadPoolExecutor(MAX_IN_FLIGHT) as pool:
            futures = []
            for number, arrival in enumerate(arrivals):
                time.sleep(max(0.0, begun_at + arrival.seconds - time.monotonic()))
                if at and number in at:
                    at[number]()
                futures.append(pool.submit(draw, number, arrival))
            ended = [future.result() for future in futures]
        spent = service.cpu_seconds() - before
        for number, file in files.items():
            self._check(service.name, arrivals[number].request, file)
        return Run(service.name, service.settings, phase, rate, ended, spent, errors[:5], num_warm_up)

    def _check(self, name: str, request: GenerationRequest, file: bytes) -> None:
        pixels = _pixels(file)
        if pixels.shape != (request.height, request.width, 3):
            raise RuntimeError(
                f"{name} has drawn {pixels.shape} instead of {request.width} x {request.height}"
            )
        known = self._references.get(replace(request, seconds_left=None))
        if known is not None and (difference := float(np.abs(pixels - known).mean())) > MAX_PIXEL_DIFFERENCE:
            raise RuntimeError(f"{name}: {request.prompt!r} is off by {difference:.2f} of 255 on average")


def _pixels(file: bytes) -> Any:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)
