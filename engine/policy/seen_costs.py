"""Seconds of steps, encodings and decodings, as generations run: the latest of each kind, and medians.

The engine thread adds, other threads read. It does not know profiles or tiers; `engine.self_test.measurement`
makes separate measurements.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from engine.policy.candidate import BatchKey

NUM_KEPT = 64
"""Measurements kept for each kind and size; older ones, from another load of the machine, are dropped."""
MIN_SEEN = 3
"""Fewer steps are not used, since the first one of a process includes the warm-up."""

K = TypeVar("K")
Shape = tuple[str, int, int]  # model, latent height, latent width


@dataclass(frozen=True)
class Costs:
    """Costs of one model at a class of sizes; those that grow with the size are per latent pixel."""

    step_seconds: Mapping[int, float]  # per latent pixel, of full steps, by bucket; never empty
    encode_seconds: float  # all prompts of a generation, cached ones included
    decode_seconds: float  # per latent pixel
    cached_share: float  # seconds of a cached step, divided by those of a full one; 1: not seen


class SeenCosts:
    """The costs of one engine; steps with both full and cached rows are not kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._full: dict[tuple[Shape, int], deque[float]] = _kept()
        self._cached: dict[tuple[Shape, int], deque[float]] = _kept()
        self._encodings: dict[str, deque[float]] = _kept()
        self._decodings: dict[Shape, deque[float]] = _kept()

    def saw_step(self, key: BatchKey, bucket: int, seconds: float, *, full_share: float = 1.0) -> None:
        """Record a step batch at `bucket` rows; `full_share` of its rows ran the whole model."""
        where = (_shape(key), bucket)
        with self._lock:
            if full_share == 1:
                self._full[where].append(seconds)
            elif not full_share:
                self._cached[where].append(seconds)

    def saw_encoding(self, key: BatchKey, seconds: float) -> None:
        """Record the seconds of encoding the prompts of one generation."""
        with self._lock:
            self._encodings[key.model].append(seconds)

    def saw_decoding(self, key: BatchKey, seconds: float) -> None:
        """Record the seconds of decoding one image."""
        with self._lock:
            self._decodings[_shape(key)].append(seconds)

    def costs(self, model: str, min_latents: int, max_latents: int) -> Costs | None:
        """The costs of the model at sizes of that many latent pixels; None while too little was measured.

        Each bucket has the cost of the largest size seen: smaller ones cost about in proportion.
        """
        with self._lock:  # the engine thread waits for it, so nothing is computed while it is held
            all_full = {where: list(seen) for where, seen in self._full.items() if where[0][0] == model}
            all_cached = {where: list(seen) for where, seen in self._cached.items() if where[0][0] == model}
            all_decodings = {
                shape: list(seen) for shape, seen in self._decodings.items() if shape[0] == model
            }
            encodings = list(self._encodings.get(model, ()))
        full, cached = _medians(all_full, MIN_SEEN), _medians(all_cached, MIN_SEEN)
        decodings = _medians(all_decodings, 1)
        fits = [
            shape
            for shape in sorted({shape for shape, _ in full}, key=_latents)
            if min_latents <= _latents(shape) <= max_latents and shape in decodings
        ]
        if not fits:
            return None
        steps = {
            rows: seconds / _latents(shape)
            for shape in fits  # small ones first, so that larger ones overwrite them
            for (other, rows), seconds in full.items()
            if other == shape
        }
        shares = [cached[where] / full[where] for where in cached if where[0] in fits and where in full]
        return Costs(
            step_seconds=dict(sorted(steps.items())),
            encode_seconds=sum(encodings) / len(encodings) if encodings else 0.0,
            decode_seconds=decodings[fits[-1]] / _latents(fits[-1]),
            cached_share=min(1.0, max(shares, default=1.0)),
        )


def _medians(seen: Mapping[K, list[float]], least: int) -> dict[K, float]:
    """The medians of all that were measured at least `least` times."""
    return {where: median(seconds) for where, seconds in seen.items() if len(seconds) >= least}


def _kept() -> defaultdict[K, deque[float]]:
    return defaultdict(lambda: deque(maxlen=NUM_KEPT))


def _shape(key: BatchKey) -> Shape:
    return key.model, key.latent_height, key.latent_width


def _latents(shape: Shape) -> int:
    return shape[1] * shape[2]
